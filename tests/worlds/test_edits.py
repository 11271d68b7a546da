"""What every world owes to whoever edits it: things that can be put elsewhere or painted, each by
itself and nothing else."""

import functools
import re
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from lewm import registry
from lewm.worlds.kit import pushing
from lewm.worlds.kit.batched import BatchedWorld
from lewm.worlds.kit.looks import Look, choice, color, number, turned_color
from lewm.worlds.kit.opening import Looped, open_world

B, SIZE, SEEDS = 6, 64, range(100, 106)
every_env = pytest.mark.parametrize("name", [*registry.names("worlds"), "two-room walls"])


@functools.cache
def opened(name, num_envs=B, look=None):
    """A world in a look that is quick to draw. Worlds are shared by the tests, which put them into
    states of their own."""
    try:
        name, *stated = name.split()
        looks = registry.load("worlds", name).looks
        quick = [*stated, *({"fast", "tiny"} & set(looks)), looks[0]]
        return open_world(name, num_envs, image_size=SIZE, look=look or quick[0])
    except ImportError as missing:
        pytest.skip(str(missing))
    except ValueError as error:
        if "OpenGL" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True, scope="module")
def closed_afterwards():
    yield
    opened.cache_clear()  # a world that lives on until the interpreter ends complains about it


@functools.cache
def in_the_middle(name):
    """(B, S) states that the expert comes through."""
    world = opened(name)
    world.reset(range(B))
    act = world.policy("expert", range(B))
    for _ in range(25):
        world.step(act())
    return world.states


def belongs(spec):
    """(S,) the thing that each state variable is of: its name begins with it, or it is of the one
    that acts."""
    return np.array(
        [
            next((t for t in spec.things if n.startswith(t)), spec.things[0])
            for n in spec.state_names
        ]
    )


def subsets(things):
    return [chosen for size in range(1, len(things) + 1) for chosen in combinations(things, size)]


def change(pictures, others):
    return np.abs(pictures.astype(float) - others).mean(axis=(1, 2, 3))


@every_env
def test_a_teleport_moves_what_it_names_and_nothing_else(name):
    world, states = opened(name), in_the_middle(name)
    assert world.spec.things
    owner, velocity = (
        belongs(world.spec),
        np.array([unit.endswith("/s") for unit in world.spec.state_units]),
    )
    before = world.render(states)
    for chosen in subsets(world.spec.things):
        given = states.copy()
        moved = world.teleport(chosen, given, SEEDS)
        assert (moved.shape, moved.dtype) == (states.shape, np.float32)
        np.testing.assert_array_equal(given, states)
        named = np.isin(owner, chosen)
        np.testing.assert_array_equal(moved[:, ~named], states[:, ~named])
        for thing in chosen:
            assert (moved != states)[:, (owner == thing) & ~velocity].any(axis=1).all()
        assert not moved[:, named & velocity].any(), "what was put somewhere rests there"
        assert (change(world.render(moved), before) > 0.1).all()


@every_env
def test_a_teleport_is_legal(name):
    """The world keeps the state as it was set, and what was put somewhere stays there: nothing
    throws it out."""
    world, states = opened(name), in_the_middle(name)
    owner, velocity = (
        belongs(world.spec),
        np.array([unit.endswith("/s") for unit in world.spec.state_units]),
    )
    for chosen in subsets(world.spec.things):
        moved = world.teleport(chosen, states, SEEDS)
        world.set_states(moved)
        np.testing.assert_allclose(world.states, moved, atol=1e-6)
        world.step(np.zeros((B, len(world.spec.action_low)), np.float32))
        for thing in chosen:
            places = (owner == thing) & ~velocity
            drift, way = (
                np.linalg.norm((a - b)[:, places], axis=1)
                for a, b in ((world.states, moved), (moved, states))
            )
            assert (drift < 0.2 * way).all()


@every_env
def test_a_teleport_follows_its_seed_and_its_state_alone(name):
    world, states = opened(name), in_the_middle(name)
    world.set_states(states)
    for chosen in subsets(world.spec.things):
        moved = world.teleport(chosen, states, SEEDS)
        np.testing.assert_array_equal(moved, world.teleport(chosen, states, SEEDS))
        np.testing.assert_array_equal(moved[2:4], world.teleport(chosen, states[2:4], SEEDS[2:4]))
        assert (moved != world.teleport(chosen, states, range(B))).any(axis=1).all()
    np.testing.assert_array_equal(world.states, states)
    np.testing.assert_array_equal(world.teleport((), states, SEEDS), states)


@every_env
def test_a_teleport_goes_far_enough(name):
    world = opened(name)
    states = np.repeat(in_the_middle(name)[:1], 20, axis=0)
    moved = world.teleport(world.spec.things[:1], states, range(20))
    name = world.spec.name
    x = {"cube": slice(41, 44)}.get(name, slice(0, 2))  # the place of the one that acts
    tolerance = {"two-room": 16, "push-t": 20, "reacher": 0.05, "cube": 0.04}[name]
    assert (np.linalg.norm((moved - states)[:, x], axis=1) > 2 * tolerance * 0.999).all()
    assert len(np.unique(moved[:, x], axis=0)) == 20


def test_agent_and_block_of_push_t_never_overlap():
    world = opened("push-t")
    states = np.repeat(in_the_middle("push-t"), 12, axis=0)
    low, high = pushing.agent_range(world.factors.table)
    for chosen in subsets(world.spec.things):
        moved = world.teleport(chosen, states, range(len(states)))
        assert (pushing.clearance(moved, moved[:, None, :2]) > pushing.AGENT_RADIUS).all()
        assert ((moved[:, :2] >= low) & (moved[:, :2] <= high)).all()


@every_env
def test_another_colour_changes_the_picture_and_not_the_world(name):
    world, states = opened(name), in_the_middle(name)
    plain, pictures = world.render(states), {}
    for thing in world.spec.things:
        look = world.recoloured(thing)
        painted = opened(name, look=look)
        assert painted.spec.look != world.spec.look
        assert opened(name, look=painted.spec.look).spec == painted.spec
        pictures[thing] = painted.render(states)
        different = (pictures[thing] != plain).any(axis=-1)
        assert 0 < different.mean() < 0.5, "the thing, and not the whole picture"
        assert np.abs(pictures[thing].astype(int) - plain).max() > 50
        for each in (world, painted):
            each.set_states(states)
            act = each.policy("random", range(B))
            for _ in range(5):
                each.step(act())
        np.testing.assert_array_equal(world.states, painted.states)
    np.testing.assert_array_equal(world.render(states), plain)
    assert len({p.tobytes() for p in pictures.values()}) == len(world.spec.things)


@every_env
def test_what_is_painted_can_be_painted_again(name):
    world, states, first = opened(name), in_the_middle(name), opened(name).spec.things[0]
    once = opened(name, look=world.recoloured(first))
    for thing in world.spec.things:
        twice = opened(name, 1, once.recoloured(thing))
        assert (twice.render(states) != once.render(states)).any()
        assert ("color=" in twice.spec.look) or thing == first, (
            "red is the opposite of the opposite of red"
        )


@every_env
def test_what_a_world_does_not_know_is_refused(name):
    world = opened(name)
    thing = world.spec.things[0]
    for ask in (
        lambda: world.teleport([thing + "s"], in_the_middle(name), SEEDS),
        lambda: world.recoloured(thing + "s"),
    ):
        with pytest.raises(ValueError, match=f"Did you mean '{thing}'"):
            ask()
    with pytest.raises(ValueError, match="must be finite"):
        world.teleport([thing], np.full_like(in_the_middle(name), np.nan), SEEDS)


@pytest.mark.parametrize(
    "digits", ["000000", "ffffff", "808080", "778899", "ff0000", "00c8ff", "f54254", "010000"]
)
def test_the_opposite_colour_is_another_one(digits):
    own, other = (
        np.array([*bytes.fromhex(color)], int) for color in (digits, turned_color(digits))
    )
    assert np.abs(own - other).max() >= 60
    assert np.ptp(other) >= 0.7 * other.max(), "vivid"


def test_colours_are_turned_on_the_wheel():
    assert [turned_color("ff0000", turn) for turn in (1 / 6, 1 / 3, 1 / 2, 2 / 3)] == [
        "ffff00",
        "00ff00",
        "00ffff",
        "0000ff",
    ]
    assert turned_color("00ffff") == "ff0000"
    for turn in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            turned_color("ff0000", turn)


@every_env
def test_a_colour_can_be_turned_by_a_part_of_the_wheel(name):
    world = opened(name)
    assert len({world.recoloured(world.spec.things[0], turn) for turn in (0.1, 0.3, 0.5)}) == 3


@dataclass(frozen=True)
class Somewhere(Look):
    """Looks of a world that has every kind of factor."""

    world = "somewhere"
    named = {"published": {}, "fast": {"drawing": "fast"}, "dark": {"arm_color": "000001"}}  # noqa: RUF012
    paints = {"arm": ("arm_color",), "block": ("block_color", "rim_color")}  # noqa: RUF012

    drawing: str = choice("published", ("published", "fast"))
    arm_color: str = color("112233")
    block_color: str = color("445566")
    rim_color: str = color("778899", absent=True)
    size: float = number(2.0, "a number from 1 to 10", 1, 10)


@pytest.mark.parametrize(
    ("written", "look", "factors"),
    [
        ("published", "published", {}),
        ("fast", "fast", {"drawing": "fast"}),
        ("block_color=#00FF00", "block_color=00ff00", {"block_color": "00ff00"}),
        ("rim_color = NONE", "rim_color=none", {"rim_color": "none"}),
        ("published, size=3", "size=3.0", {"size": 3.0}),
        ("fast,arm_color=112233", "fast", {"drawing": "fast"}),  # its own colour is no change
        ("arm_color=000001", "dark", {"arm_color": "000001"}),
        ("dark,size=2.5e0", "dark,size=2.5", {"arm_color": "000001", "size": 2.5}),
        # what stands later overrides what stands before it
        ("dark, arm_color=abcdef", "arm_color=abcdef", {"arm_color": "abcdef"}),
        ("arm_color=abcdef, dark", "dark", {"arm_color": "000001"}),
        ("size=3, dark, size=4", "dark,size=4.0", {"arm_color": "000001", "size": 4.0}),
        (
            "block_color=00ff00, fast, arm_color=000000",
            "fast,arm_color=000000,block_color=00ff00",
            {"drawing": "fast", "arm_color": "000000", "block_color": "00ff00"},
        ),
    ],
)
def test_looks_are_read_and_named(written, look, factors):
    found = Somewhere.parse(written)
    assert found == Somewhere(**factors)
    assert found.look == look
    assert Somewhere.parse(look) == found


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("fsat", "unknown look of somewhere 'fsat'. Did you mean 'fast'"),
        ("", "unknown look of somewhere ''"),
        ("arm_colour=000000", "unknown factor of somewhere 'arm_colour'. Did you mean 'arm_color'"),
        ("drawing=fast", "unknown factor of somewhere 'drawing'"),
        ("arm_color=red", "arm_color must be six hexadecimal digits"),
        ("arm_color=none", "arm_color must be six hexadecimal digits"),
        ("size=0.5", "size must be a number from 1 to 10, got '0.5'"),
        ("size=1.2.3", "size must be a number from 1 to 10, got '1.2.3'"),
        ("size=nan", "size must be a number from 1 to 10, got 'nan'"),
    ],
)
def test_looks_that_are_none_are_answered(written, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Somewhere.parse(written)


def test_all_colours_of_a_thing_are_turned():
    look = Somewhere.parse("fast,block_color=ff0000,rim_color=00ffff")
    assert look.recoloured("block").look == "fast,block_color=00ffff,rim_color=ff0000"
    with pytest.raises(ValueError, match="thing of somewhere 'blok'"):
        look.recoloured("blok")


@every_env
def test_every_world_reads_its_looks_in_the_same_way(name):
    world = opened(name)
    assert isinstance(world, BatchedWorld)
    assert isinstance(world.factors, Look)
    kind = type(world.factors)
    assert (kind.world, tuple(kind.paints)) == (world.spec.name, world.spec.things)
    assert next(iter(kind.named)) == "published"
    assert kind.parse(world.spec.look) == world.factors
    assert (
        world.recoloured(world.spec.things[0])
        == kind.parse(world.recoloured(world.spec.things[0])).look
    )


class Foreign:
    """A plug-in of another package, without a batched form, whose agent can be moved."""

    def __init__(self):
        self.env_spec = opened("two-room").spec

    def reset(self, seed=None, options=None):
        return None, {"state": np.zeros(2), "goal": np.zeros(2), "success": False}

    def teleport(self, things, state, seed):
        assert things == ("agent",)
        return state + seed

    def recoloured(self, thing, turn):
        return f"{thing}_color={turn}"


def test_single_environments_are_asked_one_by_one():
    world = Looped([Foreign(), Foreign()])
    moved = world.teleport(("agent",), np.zeros((3, 2), np.float32), [1, 2, 3])
    np.testing.assert_array_equal(moved, [[1, 1], [2, 2], [3, 3]])
    assert moved.dtype == np.float32
    assert world.recoloured("agent", 0.25) == "agent_color=0.25"
