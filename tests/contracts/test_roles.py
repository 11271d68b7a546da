"""Roles tell what fills them from what does not, and what a plug-in misses is named."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm import registry
from lewm.contracts import (
    Advancing,
    Batched,
    DataSpec,
    Described,
    Distance,
    Editable,
    Engined,
    Head,
    Headed,
    Refining,
    Regioned,
    Selecting,
    SingleWorld,
    Specified,
    Statistics,
    WorldModel,
    WorldSpec,
    missing,
    require,
)
from lewm.data.collecting import collect
from lewm.planning.changes import PlanningChanges
from lewm.planning.config import PlanningConfig, heads_of
from lewm.planning.objectives.l2 import L2
from lewm.planning.objectives.temporal import Temporal
from lewm.planning.solvers.amortised import Amortised
from lewm.planning.solvers.cem import CEM
from lewm.runs import checkpoints
from lewm.training.config import TrainingConfig
from lewm.training.fit import fit
from lewm.training.train import train
from lewm.worlds.kit.opening import Looped, open_world
from lewm.worlds.two_room import TwoRoom
from tests.support import models as small
from tests.support.small_models import SMALL

DATA = DataSpec(56, 5, Statistics((0.5,) * 3, (0.2,) * 3, (0.0, 0.0), (1.0, 1.0)))
SPEC = WorldSpec("line", "1", 16, (-1.0,), (1.0,), ("x",), ("px",), 5)


class Line:
    """A world plug-in without a batched form, and with nothing that one may leave out."""

    policies = ("expert", "random")

    def __init__(self):
        self.env_spec = SPEC

    def reset(self, *, seed=None, options=None):
        return None, {"state": np.zeros(1), "goal": np.ones(1), "success": False}

    def step(self, action):
        return None, 0.0, False, False, {**self.reset()[1], "state": np.array(action)}

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)

    def render_state(self, state):
        return self.render()

    def policy(self, name, seed):
        return lambda: np.zeros(1, np.float32)


class Rooms(Line):
    """One with rooms, that need not draw."""

    def advance(self, action):
        return {**self.reset()[1], "state": 10 * np.array(action)}

    def regions(self, states):
        return (states[:, 0] > 0).astype(int)


def test_a_role_names_what_is_missing_in_its_own_order():
    assert missing(SingleWorld, Line()) == []
    assert missing(SingleWorld, SimpleNamespace(env_spec=SPEC, reset=1, step=1, render=1)) == [
        "policies",
        "policy",
        "render_state",
    ]
    with pytest.raises(
        ValueError, match=r"world 'x' .* `lewm\.contracts\.Editable`.*`teleport`, `recoloured`"
    ):
        require(Editable, Line(), "world 'x'")


def test_single_worlds_are_asked_only_for_what_they_have():
    plain, rooms = Looped([Line()]), Looped([Rooms()])
    states = np.array([[-1.0], [1.0]])
    assert plain.regions(states) is None
    assert rooms.regions(states).tolist() == [0, 1]
    for world, place in ((plain, 0.5), (rooms, 5.0)):
        world.step(np.array([[0.5]]))
        assert world.states.tolist() == [[place]]
    for role in (Advancing, Regioned):
        assert isinstance(Rooms(), role)
        assert not isinstance(Line(), role)


def test_a_world_whose_things_cannot_be_edited_says_what_to_add():
    for edit in (
        lambda world: world.teleport(("dot",), np.zeros((1, 1)), [0]),
        lambda world: world.recoloured("dot"),
    ):
        with pytest.raises(ValueError, match="without `teleport`, `recoloured`"):
            edit(Looped([Line()]))


@pytest.mark.parametrize("name", ["policy", "policies", "render_state"])
def test_a_world_plugin_that_misses_a_method_is_told_which(name):
    lacking = type("Lacking", (Line,), {"action_space": None, "observation_space": None})
    assert isinstance(lacking(), Specified)
    parts = {key: value for key, value in vars(Line).items() if key != name}
    lacking = type("Lacking", (), {**parts, "action_space": None, "observation_space": None})
    with pytest.raises(ValueError, match=re.escape(f"without `{name}`. Add")):
        open_world(lacking, 1)


def test_a_batched_form_belongs_to_the_class():
    assert isinstance(TwoRoom, Batched)
    assert not isinstance(Line, Batched)


@pytest.mark.parametrize("name", registry.names("heads"))
def test_every_head_says_how_many_blocks_it_learns_from_and_can_be_made_anew(name):
    head = registry.load("heads", name)().build(8, 4)
    assert isinstance(head, Described)
    assert isinstance(head, Selecting) == (name == "map")
    if name == "map":  # nothing in it is trained
        assert not list(head.parameters())
        return
    assert isinstance(head, Head)
    assert isinstance(head, Distance) == (name == "temporal")
    assert head.horizon == (0 if name == "temporal" else head.config.horizon)


def test_a_head_without_a_horizon_is_told_so():
    class Lossy(torch.nn.Linear):
        def loss(self, batch):
            raise AssertionError("it is refused first")

    with pytest.raises(ValueError, match="without `horizon`"):
        fit(Lossy(2, 2), None, None)


def test_parts_of_a_plan_say_which_heads_and_which_search_they_have():
    search = CEM(num_candidates=8, num_elites=2, num_iterations=1)
    solver = Amortised(search=search)
    assert [isinstance(part, Headed) for part in (L2(), Temporal(), search, solver)] == [
        False,
        True,
        False,
        True,
    ]
    assert [isinstance(part, Refining) for part in (search, solver)] == [False, True]
    assert heads_of(PlanningConfig(L2(), search)) == set()
    assert heads_of(PlanningConfig(Temporal(), solver)) == {"temporal", "amortised"}
    with pytest.raises(ValueError, match="expected a solver that takes a search, got 'cem'"):
        PlanningChanges(search="mppi").apply(PlanningConfig(L2(), search), {})


def test_a_model_may_have_an_engine():
    assert isinstance(SimpleNamespace(engine=lambda precision="float32": None), Engined)
    assert not isinstance(SimpleNamespace(rollout=None), Engined)


@pytest.mark.parametrize("name", registry.names("models"))
def test_every_model_can_be_made_anew_and_one_without_config_is_told_so(name):
    model = registry.load("models", name)(**SMALL[name]).build(small.SPEC)
    assert isinstance(model, WorldModel)
    assert isinstance(model, Described)
    described = checkpoints.describe_model(model)
    assert checkpoints.describe_model(checkpoints.build_model(described)) == described
    with pytest.raises(ValueError, match=r"without `config`\. Add"):
        checkpoints.describe_model(torch.nn.Linear(1, 1))


def test_a_model_that_misses_a_method_is_told_before_it_is_trained(tmp_path):
    class Half(torch.nn.Module):
        context, latent_dim, spec = 1, 8, DATA

        def encode(self, pixels):
            raise AssertionError("it is refused first")

        loss = encode

    data = tmp_path / "episodes.h5"
    with collect("two-room", data, 4, image_size=16):
        pass
    config = SimpleNamespace(build=lambda spec: Half())
    with pytest.raises(ValueError, match="without `rollout`"):
        train(config, TrainingConfig(batch_size=2), data, tmp_path / "run")
