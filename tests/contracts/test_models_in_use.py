"""Every world model in the real loop: stopped and continued it ends with the same bits, and agents
plan with it, whatever the solver. Those of many tokens answer every analysis."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from lewm import registry
from lewm.contracts import WorldSpec
from lewm.data.collecting import collect
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig, describe_planning
from lewm.planning.objectives.l1 import L1
from lewm.planning.solvers.cem import CEM
from lewm.runs import checkpoints
from lewm.runs.run import open_run
from lewm.training.train import train
from tests.support import knobs, tiny
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


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    data = tmp_path_factory.mktemp("walks") / "episodes.h5"
    collect("two-room", data, 40, seed=0, image_size=32)
    return data


@pytest.fixture(scope="module", params=["dino-wm", "vjepa2-ac"])
def opened(request, walks, tmp_path_factory):
    """A run of Two-Room of a model of four tokens, trained for a moment. One layer predicts:
    economy counts a plan of the published size."""
    few = {"predictor_depth": 1} | ({"patch_size": 16} if request.param == "vjepa2-ac" else {})
    config = registry.load("models", request.param)(**SMALL[request.param] | few, context=1)
    how = replace(tiny.TRAINING, updates=4, frameskip=5, window=4, holdout=0.5, checkpoint_every=4)
    planning = PlanningConfig(L1(), CEM(8, 2, 2))
    described = {"world": "two-room", "planning": describe_planning(planning)}
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return open_run(train(config, how, walks, folder, experiment=described))


@pytest.mark.parametrize("name", registry.names("analyses"))
def test_every_analysis_answers_for_a_model_of_many_tokens(name, opened):
    settings = dict(knobs.ANALYSED[name])
    if name == "economy":
        settings |= {"limit_s": 0.0, "paper_plans": 0}
    found = registry.load("analyses", name)(**settings).run(opened)
    assert type(found) is registry.load("analyses", name).result
    assert found.tables()
    if name == "economy":
        assert found.tokens_per_frame == opened.model.tokens == 4
