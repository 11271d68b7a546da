"""Every world model in the real loop: stopped and continued it ends with the same bits, and agents
plan with it, whatever the solver."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from lewm import registry
from lewm.contracts import WorldSpec
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.runs import checkpoints
from lewm.training.train import train
from tests.support import tiny
from tests.support.small_models import SMALL

SPEC = WorldSpec("line", "1", 32, (-1.0,) * 2, (1.0,) * 2, ("x", "y"), ("", ""), 9)
TRAINING = replace(tiny.TRAINING, updates=4, checkpoint_every=2, batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("models") / "episodes.h5", size=32)


@pytest.mark.parametrize("name", registry.names("models"))
def test_stopped_and_continued_it_ends_as_if_never_stopped_and_agents_plan(name, data, tmp_path):
    config = registry.load("models", name)(**SMALL[name], context=1)

    def stop(progress):
        if progress.stage == "train" and progress.done == 3:
            raise KeyboardInterrupt

    train(config, TRAINING, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, TRAINING, data, tmp_path / "stopped", report=stop)
    assert checkpoints.latest(tmp_path / "stopped").name == "00000002"
    train(config, TRAINING, data, tmp_path / "stopped")
    weights = [
        (checkpoints.latest(tmp_path / run) / "weights.safetensors").read_bytes()
        for run in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]

    model = checkpoints.load(tmp_path / "whole")
    pictures = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    for solver in ("cem", "icem", "mppi", "predictive-sampling", "gradient"):
        search = registry.load("solvers", solver)
        few = {"num_candidates": 6, "num_elites": 2, "num_iterations": 1}
        search = search(**{k: v for k, v in few.items() if k in search.__dataclass_fields__})
        planning = PlanningConfig(registry.load("objectives", "l2")(), search, 2, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # noise shows less than the whole box
            agent = Agent(model, planning, SPEC, [0, 1])
        action = agent.act(pictures, pictures[::-1].copy())
        assert action.shape == (2, 2)
        assert np.isfinite(action).all()
