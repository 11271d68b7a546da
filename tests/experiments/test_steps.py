"""The calls of `import lewm` on a world of the user's own: train, fit, open, plan, and what is
refused."""

import json
import shutil

import h5py
import numpy as np
import pytest

import lewm
from lewm.cli.main import main
from lewm.evaluation.outcome import Evaluation
from lewm.evaluation.tasks import Unavailable
from lewm.experiments import recipes
from lewm.files import read_json, write_json
from lewm.planning.config import describe_planning
from lewm.runs import checkpoints
from lewm.runs.run import Missing
from tests.support.own_worlds import SIDE, Dot, Edge, Wide

FEW = {"updates": 6, "recalibration": 2, "batch_size": 16}
ID = "gym:lewm-tests/Dot-v0"
FLAGS = ["--training.updates=3", "--training.recalibration=2", f"--image-size={SIDE}"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with episodes of a class, and a run of them that has heads."""
    folder = tmp_path_factory.mktemp("own")
    lewm.collect(Dot, folder / "e.h5", 16, max_steps=40, speed=0.05).close()
    assert lewm.train("two-room-tiny", folder / "e.h5", folder / "run", **FEW) == folder / "run"
    lewm.fit_heads(folder / "run", updates=5)
    return folder


@pytest.fixture
def alone(made, tmp_path):
    """The same run, moved to where its episodes are not."""
    shutil.copytree(made / "run", tmp_path / "run")
    record = tmp_path / "run" / checkpoints.EXPERIMENT
    write_json(record, {**read_json(record), "data_path": str(tmp_path / "gone.h5")})
    return tmp_path / "run"


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all((a == b).all() for a, b in pairs)


# ----------------------------------------------------------------------------------------- training


def test_a_run_says_how_it_was_made(made):
    experiment = read_json(made / "run" / checkpoints.EXPERIMENT)
    recipe = recipes.load("two-room-tiny")
    assert experiment["world"] == "tests.support.own_worlds.Dot"
    assert experiment["recipe"] == "two-room-tiny"
    assert experiment["planning"] == json.loads(json.dumps(describe_planning(recipe.planning)))
    assert experiment["training"]["updates"] == 6
    assert experiment["training"]["learning_rate"] == recipe.training.learning_rate


def test_all_ways_to_say_what_is_trained_give_the_same_weights(made, tmp_path):
    recipe = lewm.recipe("two-room-tiny")
    config = lewm.TrainingConfig(**{**vars(recipe.training), **FEW})
    data = made / "e.h5"
    runs = [
        lewm.train(recipe, data, tmp_path / "a", **FEW),
        lewm.train(recipe.model, config, data, tmp_path / "b"),
        lewm.train("two-room-tiny", data=data, out=tmp_path / "c", **FEW),
    ]
    for run in runs:
        assert same_weights(lewm.load(run), lewm.load(made / "run"))
    other = lewm.train("two-room-tiny", data, tmp_path / "d", **FEW, context=2)
    assert lewm.load(other).context == 2


def test_misspelt_settings_and_places(made, tmp_path):
    data = made / "e.h5"
    with pytest.raises(ValueError, match="unknown setting of the training or the model 'update'"):
        lewm.train("two-room-tiny", data, tmp_path / "r", update=3)
    with pytest.raises(ValueError, match=r"unknown recipe 'two-room-tinny'. Did you mean"):
        lewm.train("two-room-tinny", data, tmp_path / "r")
    with pytest.raises(ValueError, match="expected an episode file and a run folder"):
        lewm.train("two-room-tiny", data)
    with pytest.raises(ValueError, match=r"unknown setting 'update'. Did you mean 'updates'"):
        lewm.fit_heads(made / "run", update=3)
    with pytest.raises(
        ValueError, match=r"unknown planning setting 'solvr'. Did you mean 'solver'"
    ):
        lewm.evaluate(made / "run", solvr="cem")
    assert not (tmp_path / "r").exists()


def test_episodes_of_a_world_of_ours_keep_their_recipe(small_data, tmp_path):
    with pytest.raises(ValueError, match="expected episodes of world 'push-t', got some of 'two"):
        lewm.train("push-t-tiny", small_data, tmp_path / "r")


# ----------------------------------------------------------------------------------------- planning


def test_an_agent_of_a_run_takes_pictures(made):
    run = lewm.open_run(made / "run", world=Dot)
    world = run.world(3)
    assert world.envs[0].speed == 0.05, "the options that it was recorded with"
    world.reset([1, 2, 3])
    goals = world.render()
    world.reset([4, 5, 6])
    agent = run.agent(3, seed=7)
    actions = agent.act(world.render(), goals)
    assert (actions.shape, actions.dtype) == ((3, 2), np.float32)
    again = run.agent(3, seed=7).act(world.render(), goals)
    np.testing.assert_array_equal(actions, again)
    searched = run.agent(3, solver="cem", candidates=16, elites=4, iterations=2)
    assert searched.config.solver == lewm.CEM(16, 4, 2)
    searched.act(world.render(), goals)

    unopened = lewm.open_run(made / "run")
    assert unopened.agent(world=Dot).num_envs == 1
    assert unopened.agent(world=world.spec).num_envs == 1
    with pytest.raises(ValueError, match=r"world=MyEnv\)"):
        unopened.agent()
    with pytest.raises(ValueError, match="square pictures"):
        unopened.agent(world=Wide)


def test_a_class_is_never_imported_because_a_file_names_it(made):
    run = lewm.open_run(made / "run")
    assert run.open_world is None
    with pytest.raises(ValueError, match=r"got 'tests.support.own_worlds.Dot'.*world=MyEnv\)"):
        run.world(1)


def test_evaluation_says_what_the_world_lacks(made):
    run = lewm.open_run(made / "run", world=Dot)
    with pytest.raises(Unavailable) as refused:
        lewm.evaluate(run, lewm.Task(episodes=2))
    for part in ("without `env_spec`", "docs/your-own-data.md", "`lewm.open_run(RUN).agent()`"):
        assert part in str(refused.value)


def test_evaluation_in_a_world_with_goals(small_run):
    task = lewm.Task(episodes=4, budget=5)
    search = {"solver": "cem", "objective": "l2", "candidates": 8, "elites": 2, "iterations": 1}
    found = lewm.evaluate(small_run, task, **search)
    assert isinstance(found, Evaluation)
    alone = lewm.evaluate(lewm.open_run(small_run), task, together=1, **search)
    np.testing.assert_array_equal(found.steps(), alone.steps())
    with pytest.raises(ValueError, match="expected data together with a run's folder"):
        lewm.evaluate(lewm.open_run(small_run), task, data="e.h5")


# ----------------------------------------------------------------------------- without its episodes


def test_a_run_without_its_episodes_can_be_used(alone, made):
    run, whole = lewm.open_run(alone, world=Dot), lewm.open_run(made / "run", world=Dot)
    assert isinstance(run.episodes, Missing)
    assert same_weights(run.model, whole.model)
    assert (run.world_name, run.recipe) == (whole.world_name, whole.recipe)
    assert run.model.spec.statistics == whole.model.spec.statistics
    assert set(run.heads) == {"temporal", "amortised", "map"}
    assert not run.lacks
    world = run.world(2)
    assert world.envs[0].speed == 0.05
    goals = world.render()
    world.reset([8, 9])
    np.testing.assert_array_equal(
        run.agent(2).act(world.render(), goals), whole.agent(2).act(world.render(), goals)
    )


def test_what_needs_episodes_says_which(alone, capsys):
    run = lewm.open_run(alone, world=Dot)
    words = r"gone\.h5: expected the episodes that .*run was trained on, got no such file. Pass"
    for ask in (
        lambda: run.episodes.provenance,
        lambda: run.heldout[0],
        lambda: len(run.fit_ids),
        lambda: list(run.test_ids),
        lambda: 3 in run.heldout,
        lambda: lewm.fit_heads(run),
        lambda: lewm.evaluate(run),
        run.require_states,
        lambda: run.require_episodes(1, 1, "a test"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    for command in ("analyse", "fit"):
        assert main([command, str(alone)]) != 0
        assert "expected the episodes that" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"nothing.h5: expected an episode file, got no such file"):
        lewm.open_run(alone, alone / "nothing.h5")


def test_a_world_of_ours_without_episodes(small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    record = tmp_path / "run" / checkpoints.EXPERIMENT
    write_json(record, {**read_json(record), "data_path": str(tmp_path / "gone.h5")})
    run = lewm.open_run(tmp_path / "run")
    assert run.world().spec == lewm.open_run(small_run).world().spec
    assert run.agent(2).num_envs == 2
    for command in ("analyse", "evaluate", "fit", "plan"):
        assert main([command, str(tmp_path / "run")]) != 0
        assert "expected the episodes that" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- command line


def test_a_registered_id_from_the_command_line(tmp_path, capsys):
    data, run = str(tmp_path / "e.h5"), str(tmp_path / "run")
    collect = ["collect", ID, "--out", data, "--episodes=24", "--option", "speed=0.05"]
    assert main([*collect, "--option", "max_steps=30", "--image-size", str(SIDE)]) == 0
    train = ["train", "two-room-tiny", "--data", data, *FLAGS]
    assert main([*train, "--out", run]) == 0
    assert main([*train, "--out", str(tmp_path / "named"), "--world", ID]) == 0
    assert same_weights(lewm.load(run), lewm.load(tmp_path / "named"))
    assert main(["fit", run, "--updates=3"]) == 0
    opened = lewm.open_run(run)
    assert opened.world_name == ID
    assert opened.world().envs[0].unwrapped.speed == 0.05
    assert opened.world().spec.max_steps == 30
    assert opened.agent().num_envs == 1

    assert main(["analyse", run, "probing"]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--full"]) != 0
    said = capsys.readouterr().err
    assert said.count("is a plain Gymnasium environment") == 1
    assert main(["train", "two-room-tiny", "--data", data, "--out", run, "--world", "cube"]) != 0
    assert f"got some of '{ID}'" in capsys.readouterr().err


def test_options_in_words_are_not_taken_from_a_file(made, tmp_path):
    shutil.copy(made / "e.h5", tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file.attrs["world"] = ID
        file.attrs["options"] = json.dumps({"xml_file": "/somewhere", "max_steps": 4})
    shutil.copytree(made / "run", tmp_path / "run")
    record = tmp_path / "run" / checkpoints.EXPERIMENT
    write_json(record, {**read_json(record), "world": ID})
    run = lewm.open_run(tmp_path / "run", tmp_path / "e.h5")
    with pytest.raises(ValueError, match="recorded with xml_file='/somewhere', and only numbers"):
        run.world()


def test_short_episodes_are_trained_on_where_windows_fit(tmp_path):
    with lewm.collect(Edge, tmp_path / "e.h5", 30, max_steps=60) as data:
        assert len(set(data.lengths.tolist())) > 5
    run = lewm.train("two-room-tiny", tmp_path / "e.h5", tmp_path / "run", **FEW)
    lewm.fit_heads(run, updates=3)
    assert lewm.open_run(run, world=Edge).agent().num_envs == 1
