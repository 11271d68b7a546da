"""Collection: what is recorded is what was done, whatever the batch size and whatever interrupts
it."""

import dataclasses
import json

import gymnasium
import numpy as np
import pytest

from lewm import registry
from lewm.cli.commands import collect as command
from lewm.cli.main import main
from lewm.contracts import Progress, WorldSpec
from lewm.data import collecting
from lewm.data.collecting import collect
from lewm.data.episodes import Episodes
from lewm.data.readers import open_windows
from lewm.data.split import split, statistics
from lewm.worlds.kit.opening import Looped, open_world
from tests.support.episodes import assert_same, contents


class Slider(gymnasium.Env):
    """A point on a line, one pixel bright: the smallest environment that keeps the contract of a
    plug-in."""

    policies = ("expert", "random", "reckless")

    drawn = 0

    def __init__(self, image_size=8, speed=1.0, max_steps=6):
        self.speed = speed
        criteria = ("success", "to the right")
        self.env_spec = WorldSpec(
            "slider",
            "1",
            image_size,
            (-1.0,),
            (1.0,),
            ("x",),
            ("px",),
            max_steps,
            criteria=criteria,
        )
        self.x = self.goal = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.goal = self.np_random.uniform(0, 7, 2)
        for key, value in (options or {}).items():
            {"state": self.set_state, "goal": self.set_goal}[key](value)
        return self.render(), self._info()

    def step(self, action):
        assert abs(float(action[0])) <= 1
        self.x = float(np.clip(self.x + self.speed * float(action[0]), 0, 7))
        return self.render(), 0.0, False, False, self._info()

    def render(self):
        return self.render_state([self.x])

    def render_state(self, state):
        type(self).drawn += 1
        picture = np.zeros((self.env_spec.image_size,) * 2 + (3,), np.uint8)
        picture[0, round(float(state[0]))] = 255
        picture[1] = round(float(state[0]) * 30)
        return picture

    def set_state(self, state):
        self.x = float(state[0])

    def set_goal(self, state):
        self.goal = float(state[0])

    def policy(self, name, seed):
        noise = np.random.default_rng(seed)
        if name == "reckless":
            return lambda: np.array([5.0], np.float32)
        if name == "random":
            return lambda: noise.uniform(-1, 1, 1).astype(np.float32)
        return lambda: np.clip([self.goal - self.x + 0.1 * noise.normal()], -1, 1).astype(
            np.float32
        )

    def _info(self):
        criteria = {"success": abs(self.x - self.goal) < 0.5, "to the right": self.x > self.goal}
        state, goal = np.array([[self.x], [self.goal]], np.float32)
        return {"state": state, "goal": goal, "success": criteria["success"], "criteria": criteria}


class SlowlyDrawnSlider(Slider):
    """One that can step without drawing."""

    def advance(self, action):
        self.x = float(np.clip(self.x + self.speed * float(action[0]), 0, 7))
        return self._info()


@pytest.fixture(autouse=True)
def slider(monkeypatch):
    """Make "slider" a plug-in. Processes that are started know nothing of it."""
    load, sliders = registry.load, {"slider": Slider, "slowly-drawn-slider": SlowlyDrawnSlider}
    monkeypatch.setattr(registry, "load", lambda kind, name: sliders.get(name) or load(kind, name))


WORLDS = ["slider", "two-room"]


@pytest.mark.parametrize("name", WORLDS)
def test_rows_tell_what_happened(tmp_path, name):
    told = []
    options = {"speed": 0.5} if name == "slider" else {"speed": 10.5}
    with collect(
        name,
        tmp_path / "a.h5",
        3,
        seed=4,
        image_size=16,
        report=told.append,
        **options,
    ) as data:
        world = open_world(name, 1, image_size=16, **options)
        spec = world.spec
        assert told == [Progress("collect", number, 3) for number in (1, 2, 3)]
        assert data.lengths.tolist() == [spec.max_steps + 1] * 3
        assert data.state_names == spec.state_names
        for i in range(3):
            episode = data.episode(i)
            assert np.isnan(episode.actions[-1]).all()
            np.testing.assert_array_equal(world.render(episode.states), episode.pixels)
            world.set_states(episode.states[:1])
            # the action of row t leads from observation t to observation t + 1
            for t in range(spec.max_steps):
                world.step(episode.actions[t : t + 1])
                np.testing.assert_allclose(world.states[0], episode.states[t + 1], atol=1e-4)
        found = data.provenance
        assert (found.world, found.version, found.policy, found.seed) == (
            spec.name,
            spec.version,
            "expert",
            4,
        )
        assert (found.state_units, found.look, found.requested_episodes) == (
            spec.state_units,
            spec.look,
            3,
        )
        assert json.loads(found.options) == {"image_size": 16, **options}
        data.verify()


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("policy", ["expert", "random"])
def test_batch_size_never_changes_the_data(tmp_path, name, policy):
    for batch_size in (1, 3, 7, None):
        collect(
            name,
            tmp_path / f"{batch_size}.h5",
            7,
            policy,
            seed=1,
            image_size=16,
            batch_size=batch_size,
        ).close()
        assert_same(tmp_path / f"{batch_size}.h5", tmp_path / "1.h5")


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_what_all_processes_hold_fits_in_the_buffer(tmp_path, monkeypatch, processes):
    """As many episodes at a time as fit, and not one more."""
    monkeypatch.setattr(collecting, "PATIENCE_S", 1e9)
    told, bytes_of_episode = [], (20 + 1) * 3 * 16**2  # 100 steps, a row every 5
    monkeypatch.setattr(collecting, "BUFFER_BYTES", 10 * bytes_of_episode)

    def recording(recorder, tasks, processes):
        told.append((tasks, processes))
        return collecting_alone(recorder, [range(1)], 1)

    collecting_alone = collecting.record
    monkeypatch.setattr(collecting, "record", recording)
    collect(
        "two-room", tmp_path / "a.h5", 100, "random", image_size=16, every=5, processes=processes
    )
    ((tasks, used),) = told
    assert used == processes
    assert {len(task) for task in tasks} == {10 // processes}


def test_seeds_and_episodes_differ(tmp_path):
    one, two = (collect("slider", tmp_path / f"{seed}.h5", 6, seed=seed) for seed in (0, 1))
    starts = np.concatenate([data.states(i)[0] for data in (one, two) for i in range(6)])
    assert len(np.unique(starts)) == 12


@pytest.mark.parametrize("name", WORLDS)
def test_an_interrupted_collection_goes_on_to_the_same_file(tmp_path, name):
    arguments = {"episodes": 7, "seed": 2, "image_size": 16}
    collect(name, tmp_path / "reference.h5", **arguments).close()

    def interrupt(progress):
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(name, tmp_path / "a.h5", **arguments, report=interrupt, batch_size=3)
    with Episodes.open(tmp_path / "a.h5") as kept:
        assert (len(kept), kept.complete) == (4, False)
    told = []
    collect(
        name,
        tmp_path / "a.h5",
        **arguments,
        report=told.append,
        batch_size=2,
    ).close()
    assert told == [Progress("collect", number, 7) for number in (5, 6, 7)]
    assert_same(tmp_path / "a.h5", tmp_path / "reference.h5")
    before = (tmp_path / "a.h5").stat()
    collect(name, tmp_path / "a.h5", **arguments).close()  # complete: not touched
    assert (tmp_path / "a.h5").stat().st_mtime_ns == before.st_mtime_ns


def test_another_collection_is_not_continued(tmp_path):
    collect("slider", tmp_path / "a.h5", 2).close()
    for changed, message in [
        ({"policy": "random"}, "policy 'expert' against 'random'"),
        ({"seed": 1}, "seed 0 against 1"),
        ({"episodes": 3}, "requested_episodes 2 against 3"),
        ({"image_size": 9}, "image_size.* 8.* against .*image_size.* 9"),
        ({"speed": 0.5}, "against .*speed.* 0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            collect(**{"world": "slider", "path": tmp_path / "a.h5", "episodes": 2, **changed})


def test_actions_are_recorded_as_executed(tmp_path):
    with collect("slider", tmp_path / "a.h5", 1, policy="reckless") as data:
        assert (data.actions(0)[:-1] == 1).all()


def test_misspelt_names_are_answered_before_anything_is_written(tmp_path):
    for arguments, message in [
        (("slidr", tmp_path / "a.h5", 1), "unknown world 'slidr'"),
        (("two-rooms", tmp_path / "a.h5", 1), "Did you mean 'two-room'"),
        (("slider", tmp_path / "a.h5", 1, "expret"), "Did you mean 'expert'"),
        (("two-room", tmp_path / "a.h5", 1, "expert", 0, 0), "batch_size must be at least 1"),
        (("two-room", tmp_path / "a.h5", 1, "randm"), "Did you mean 'random'"),
        (("slider", tmp_path / "a.h5", 0), "episodes must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            collect(*arguments)
    for settings, message in [
        ({"sped": 2.0}, "unknown option of world 'slider' 'sped'. Did you mean 'speed'"),
        ({"every": 0}, "every must be at least 1"),
        ({"every": 7}, "a row every 6 env steps or fewer, an episode's length, got 7"),
        ({"processes": 0}, "processes must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            collect("slider", tmp_path / "a.h5", 1, **settings)
    assert list(tmp_path.iterdir()) == []


def test_looped_world_keeps_the_role():
    world = open_world("slider", 3)
    assert isinstance(world, Looped)
    world.reset([5, 6, 5])
    assert world.states.shape == (3, 1)
    assert world.states[0] == world.states[2] != world.states[1]
    assert world.states is not world.states
    goals = world.goals
    world.set_states(goals)
    np.testing.assert_array_equal(world.goals, goals)
    assert world.success().all()  # at once, without a step
    world.set_goals((goals + 3) % 7)
    assert not world.success().any()
    world.step(np.full((3, 1), 9.0))  # clipped to the action box
    np.testing.assert_allclose(world.states, np.minimum(goals + 1, 7), atol=1e-6)
    pictures = world.render()
    assert pictures.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(world.render(world.states[1:2])[0], pictures[1])
    assert world.regions(world.states) is None
    np.testing.assert_array_equal(
        world.success("to the right"), world.states[:, 0] > world.goals[:, 0]
    )
    np.testing.assert_array_equal(world.success(), world.success("success"))
    with pytest.raises(
        ValueError,
        match=r"unknown success criterion of slider 'to the left'\. Did you mean 'to the right'",
    ):
        world.success("to the left")


def test_looped_and_batched_two_room_are_one_world(monkeypatch):
    plugin = registry.load("worlds", "two-room")
    batched = open_world("two-room", 2, image_size=16)
    looped = Looped([plugin(image_size=16) for _ in range(2)])
    assert dataclasses.asdict(looped.spec) == dataclasses.asdict(batched.spec)
    policies = []
    for world in (batched, looped):
        world.reset([3, 4])
        policies.append(world.policy("expert", [1, 2]))
    for _ in range(20):
        actions = [policy() for policy in policies]
        np.testing.assert_array_equal(*actions)
        for world in (batched, looped):
            world.step(actions[0])
    np.testing.assert_array_equal(batched.states, looped.states)
    np.testing.assert_array_equal(batched.goals, looped.goals)
    np.testing.assert_array_equal(batched.render(), looped.render())
    np.testing.assert_array_equal(batched.regions(batched.states), looped.regions(batched.states))
    np.testing.assert_array_equal(batched.success(), looped.success())


def test_collected_files_train(tmp_path):
    with collect("two-room", tmp_path / "a.h5", 4, image_size=16) as data:
        train = split(len(data)).train
        reader = open_windows(data, train, 4, 5, statistics(data, train), batch_size=8)
        batch = reader.batch(0)
        assert len(reader) == 3 * (101 - 15)
        assert batch.pixels.shape == (8, 4, 3, 16, 16)
        assert batch.actions.shape == (8, 3, 10)
        assert batch.actions.isfinite().all()
        assert 0.5 < float(batch.actions.std()) < 2


# --------------------------------------------------------------------------- a row per action block


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("every", [2, 3])
def test_a_row_per_block_holds_the_same_walk(tmp_path, name, every):
    """Frames and states are those after every so many steps, a block's actions those between them,
    side by side."""
    options = {"max_steps": 6} if name == "slider" else {}
    with collect(name, tmp_path / "each.h5", 3, seed=4, image_size=16, **options) as each:
        if each.lengths[0] % every == 1:  # as for the slider's 6 steps
            coarse = collect(
                name,
                tmp_path / "coarse.h5",
                3,
                seed=4,
                image_size=16,
                every=every,
                batch_size=2,
                **options,
            )
        else:  # 100 steps in threes
            with pytest.warns(
                UserWarning, match="episodes of 100 steps are cut by 1: rows are 3 steps apart"
            ):
                coarse = collect(
                    name, tmp_path / "coarse.h5", 3, seed=4, image_size=16, every=every, **options
                )
        assert (coarse.every, coarse.provenance.every, coarse.action_dim) == (
            every,
            every,
            each.action_dim,
        )
        for i in range(3):
            steps, rows = each.episode(i), coarse.episode(i)
            blocks = (len(steps) - 1) // every
            assert len(rows) == blocks + 1
            np.testing.assert_array_equal(rows.pixels, steps.pixels[::every][: blocks + 1])
            np.testing.assert_array_equal(rows.states, steps.states[::every][: blocks + 1])
            expected = steps.actions[: blocks * every].reshape(blocks, -1)
            np.testing.assert_array_equal(rows.actions[:-1], expected)
            assert np.isnan(rows.actions[-1]).all()
        coarse.verify()
        coarse.close()


def test_steps_in_between_are_not_drawn(tmp_path):
    SlowlyDrawnSlider.drawn = 0
    collect("slowly-drawn-slider", tmp_path / "a.h5", 2, every=3).close()
    assert (
        SlowlyDrawnSlider.drawn <= 2 * (6 // 3 + 1 + 1) + 1 + 2
    )  # rows, one picture per reset, and two to see how long one takes
    collect("slider", tmp_path / "b.h5", 2, every=3).close()
    assert_same_columns(tmp_path / "a.h5", tmp_path / "b.h5")


def assert_same_columns(path, reference):
    for name, expected in contents(reference)[0].items():
        np.testing.assert_array_equal(contents(path)[0][name], expected, err_msg=name)


def test_files_of_other_row_distances_are_not_continued(tmp_path):
    collect("slider", tmp_path / "a.h5", 2).close()
    with pytest.raises(ValueError, match="every 1 against 3"):
        collect("slider", tmp_path / "a.h5", 2, every=3)


# ------------------------------------------------------------------------------------- command line


def test_the_command_passes_on_options_and_says_how_far_frames_are_apart(tmp_path, capsys):
    path = tmp_path / "a.h5"
    words = (
        f"collect two-room --out {path} --episodes=2 --image-size=16 --every=5 --option "
        "speed=10.5 --option wall-color=00ff00"
    )
    assert main(words.split()) == 0
    assert capsys.readouterr().out == (
        f"{path} holds 2 episodes, 42 frames of 16 px, {size_mb(path)} MB, one per 5 env steps.\n"
    )
    with Episodes.open(path) as data:
        assert json.loads(data.provenance.options) == {
            "image_size": 16,
            "speed": 10.5,
            "wall_color": "00ff00",
        }
        assert data.provenance.look == "wall_color=00ff00,speed=10.5"


def size_mb(path):
    return f"{path.stat().st_size / 1e6:.1f}"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "speed",
            "expected --option name=value with an option of the world, got something else: 'speed'",
        ),
        ("seed=3", "got one that has a flag of its own: 'seed=3'"),
        ("batch-size=3", "got one that has a flag of its own"),
        ("sped=3", "unknown factor of two-room 'sped'. Did you mean 'speed'"),
        ("speed=1 --option speed=2", "got it twice"),
        ("speed=fast", "speed must be a positive number"),
    ],
)
def test_options_that_are_none_are_answered(tmp_path, capsys, option, message):
    assert main(f"collect two-room --out {tmp_path}/a.h5 --option {option}".split()) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_option_values_become_what_they_look_like():
    words = {
        "3": 3,
        "-2": -2,
        "0.5": 0.5,
        "1e-3": 0.001,
        "ff0000": "ff0000",
        "000000": "000000",
        "1e5555": "1e5555",
        "x=y": "x=y",
    }
    found = command._options([f"option_{i}={word}" for i, word in enumerate(words)])
    assert list(found.values()) == list(words.values())
    assert [type(value) for value in found.values()] == [int, int, float, float, str, str, str, str]
