"""A trained run opened for use: what counts as held out, and what may be changed about its
planning."""

import dataclasses
import shutil

import h5py
import numpy as np
import pytest
import torch

from lewm.analyses.probes.paths import encode_paths
from lewm.cli.main import main
from lewm.data.episodes import Provenance
from lewm.experiments import recipes
from lewm.files import read_json, write_json
from lewm.planning.changes import PlanningChanges
from lewm.planning.config import PlanningConfig, describe_planning, plain_search
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.runs import checkpoints
from lewm.runs.run import Run, open_run

PLANNING = PlanningConfig(
    L2(), CEM(num_candidates=100, num_elites=10, num_iterations=4), hold_actions=True
)
SEARCH = ("--solver=cem", "--objective=l2", "--iterations=1")
"""Which needs no heads."""


def collected(path, *more):
    """A file of the world of the small run, made with other flags."""
    assert main(["collect", "two-room", "--out", str(path), "--image-size=32", *more]) == 0
    return path


def without_origin(source, path, *names):
    """The same episodes in a file that does not say where they are from."""
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        for name in names or [f.name for f in dataclasses.fields(Provenance)]:
            del file.attrs[name]
    return path


@pytest.fixture(scope="module")
def trained(small_run):
    return set(read_json(small_run / checkpoints.EXPERIMENT)["split"]["train"])


def test_what_counts_as_held_out(small_run, trained, tmp_path):
    """Of its own stream, however long the file grew, a run is tested on what it was not trained on;
    of another, on all."""
    own = open_run(small_run)
    assert set(own.heldout) == set(range(16)) - trained
    for seed, episodes, expected in ((0, 20, set(range(20)) - trained), (1, 4, {0, 1, 2, 3})):
        opened = open_run(
            small_run,
            collected(tmp_path / f"{seed}.h5", f"--episodes={episodes}", f"--seed={seed}"),
        )
        assert (set(opened.heldout), opened.own_data) == (expected, seed == 0)
        fit, test = opened.fit_ids, opened.test_ids
        assert fit
        assert test
        assert not set(fit) & set(test)


@pytest.mark.parametrize(
    "look", ["agent_color=#FF0000", "agent_color=ff0000", "agent_color=0000ff", "speed=5"]
)
def test_another_look_or_spelling_of_it_does_not_unsee_an_episode(
    look, small_run, trained, tmp_path
):
    opened = open_run(small_run, collected(tmp_path / "e.h5", "--episodes=16", f"--look={look}"))
    assert opened.own_data is True
    assert set(opened.heldout) == set(range(16)) - trained


def test_the_world_is_opened_as_its_episodes_look(small_run, tmp_path):
    """And in another look where that is asked for."""
    blue, green = "agent_color=0000ff", "agent_color=00ff00"
    opened = open_run(small_run, collected(tmp_path / "e.h5", "--episodes=2", f"--look={blue}"))
    world = opened.world(2)
    assert world.spec.look == blue
    with opened.episodes as episodes:
        assert episodes.provenance.look == blue
        first = episodes.episode(0)
    drawn = world.render(first.states[:2])
    assert (drawn == first.pixels[:2]).all()
    assert opened.world(1, green).spec.look == green
    assert open_run(small_run).world().spec.look == "published"


def test_another_policy_is_other_data(small_run, tmp_path):
    opened = open_run(small_run, collected(tmp_path / "e.h5", "--episodes=4", "--policy=random"))
    assert (opened.own_data, opened.heldout) == (False, (0, 1, 2, 3))


def test_episodes_of_another_world_are_refused(small_run, small_data, tmp_path):
    shutil.copy(small_data, tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file.attrs["world"] = "push-t"
    with pytest.raises(
        ValueError,
        match=r"e\.h5: expected episodes of world 'two-room', as .* learnt it, got some of "
        r"'push-t'. Pass",
    ):
        open_run(small_run, tmp_path / "e.h5")


@pytest.mark.parametrize("silent", [(), ("seed",), ("policy", "look")])
def test_of_unknown_origin_the_numbers_of_training_are_left_out(
    silent, small_run, small_data, trained, tmp_path, capsys
):
    path = without_origin(small_data, tmp_path / "e.h5", *silent)
    opened = open_run(small_run, path)
    assert opened.own_data is None
    assert set(opened.heldout) == set(range(16)) - trained
    assert main(["evaluate", str(small_run), "--data", str(path), "--episodes=2", *SEARCH]) == 0
    assert "on 3 episodes perhaps seen in its training, origin unknown" in capsys.readouterr().out


def test_what_is_known_to_differ_is_other_data_whatever_else_is_unknown(small_run, tmp_path):
    path = collected(tmp_path / "seed.h5", "--episodes=4", "--seed=1")
    opened = open_run(small_run, without_origin(path, tmp_path / "e.h5", "policy", "world"))
    assert (opened.own_data, opened.heldout) == (False, (0, 1, 2, 3))


def test_of_unknown_origin_all_are_taken_where_nothing_would_be_left(small_run, trained, tmp_path):
    first = min(set(range(16)) - trained)
    assert first, "the first episode was trained on"
    path = collected(tmp_path / "few.h5", f"--episodes={first}")
    assert open_run(small_run, path).heldout == ()
    opened = open_run(small_run, without_origin(path, tmp_path / "e.h5"))
    assert (opened.own_data, opened.heldout) == (None, tuple(range(first)))


def test_the_very_file_of_a_training_is_its_own_though_it_says_nothing(
    small_run, small_data, trained, tmp_path
):
    data, run = without_origin(small_data, tmp_path / "e.h5"), tmp_path / "run"
    shutil.copytree(small_run, run)
    experiment = read_json(run / checkpoints.EXPERIMENT)
    experiment["data"]["provenance"] = dataclasses.asdict(Provenance())
    write_json(run / checkpoints.EXPERIMENT, {**experiment, "data_path": str(data)})
    opened = open_run(run)
    assert opened.own_data is True
    assert set(opened.heldout) == set(range(16)) - trained


def test_changes_to_planning():
    recipe = PLANNING
    changed = PlanningChanges(
        candidates=64, elites=8, intermediate=0.5, receding=2, hold_actions=False
    ).apply(recipe)
    assert (
        changed.solver.num_candidates,
        changed.solver.num_elites,
        changed.solver.num_iterations,
    ) == (64, 8, 4)
    assert (changed.objective.intermediate, changed.receding, changed.hold_actions) == (
        0.5,
        2,
        False,
    )
    assert PlanningChanges().apply(recipe) == recipe
    assert PlanningChanges(solver="cem").apply(recipe) == recipe, (
        "the recipe's own solver keeps its settings"
    )

    @dataclasses.dataclass(frozen=True)
    class Simple:
        steps: int = 3

    with pytest.raises(ValueError, match="has a setting 'candidates'"):
        PlanningChanges(candidates=3).apply(PlanningConfig(recipe.objective, Simple()))


def test_settings_reach_the_search_inside_of_a_solver():
    recipe = PLANNING
    changed = PlanningChanges(
        solver="amortised", search="icem", candidates=64, elites=8, guarded=True
    ).apply(recipe)
    assert (changed.solver.guarded, type(changed.solver.search).__name__) == (True, "ICEM")
    assert (changed.solver.search.num_candidates, changed.solver.search.num_elites) == (64, 8)
    again = PlanningChanges(iterations=2, guarded=False, countdown=25).apply(changed)
    assert (again.solver.search.num_iterations, again.solver.search.num_candidates) == (2, 64)
    assert (again.solver.guarded, again.solver.countdown) == (False, 25)
    with pytest.raises(ValueError, match="expected a solver that takes a search, got 'cem'"):
        PlanningChanges(solver="cem", search="icem").apply(recipe)
    with pytest.raises(
        ValueError, match="neither solver 'amortised' nor objective 'l2' has a setting 'candidates'"
    ):
        PlanningChanges(solver="amortised", candidates=64).apply(recipe)


def test_what_a_head_was_fitted_to_is_not_held_out(small_run, small_data, trained, tmp_path):
    """Of its own data a run's heads see what training saw; of other data, half, and the other half
    is left to test on."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    other = collected(tmp_path / "other.h5", "--episodes=6", "--seed=1")
    assert main(["fit", str(run), "temporal", "--updates=2"]) == 0
    assert set(open_run(run).heldout) == set(range(16)) - trained
    assert open_run(run, other).heldout == tuple(range(6))
    assert main(["fit", str(run), "temporal", "--updates=2", "--data", str(other)]) == 0
    opened = open_run(run, other)
    assert opened.heldout == (3, 4, 5)
    assert (opened.fit_ids, opened.test_ids) == ([0, 1, 2], [3, 4, 5])
    assert set(open_run(run).heldout) == set(range(16)) - trained


def test_another_solver_is_planned_with_as_in_the_paper():
    recipe = recipes.load("two-room-tiny").planning
    assert recipe.receding == 1
    paper = PlanningChanges(solver="cem", objective="l2").apply(recipe)
    assert paper == PlanningConfig(L2(), CEM(300, 30, 30))
    assert PlanningChanges(solver="cem", receding=2).apply(recipe).receding == 2
    assert PlanningChanges(objective="l2").apply(recipe).receding == 1


def test_a_run_plans_as_it_was_stored_whatever_its_recipe_says_today(
    small_run, small_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(recipes, "RECIPES", {})
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    stored = read_json(run / checkpoints.EXPERIMENT)
    assert stored["planning"]["solver"]["name"] == "waypoints"
    opened = open_run(run, small_data)
    assert opened.lacks == ("amortised", "map", "temporal"), "its heads were not fitted"
    assert opened.planning == plain_search()
    write_json(run / checkpoints.EXPERIMENT, {**stored, "planning": describe_planning(PLANNING)})
    opened = open_run(run, small_data)
    assert (opened.planning, opened.lacks) == (PLANNING, ())


def test_a_run_that_does_not_say_how_it_plans_plans_as_in_the_paper(
    small_run, small_data, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    older = {
        name: value
        for name, value in read_json(run / checkpoints.EXPERIMENT).items()
        if name != "planning"
    }
    write_json(run / checkpoints.EXPERIMENT, older)
    opened = open_run(run, small_data)
    assert (opened.planning, opened.lacks) == (PlanningConfig(L2(), CEM()), ())


def doubled_in_place(weight):
    weight.mul_(2)


def doubled_behind_its_back(weight):
    weight.data.mul_(2)  # PyTorch counts no change of this kind


def doubled_bit_by_bit(weight):
    weight.numpy()[...] *= 2


@pytest.mark.parametrize("change", [doubled_in_place, doubled_behind_its_back, doubled_bit_by_bit])
@torch.no_grad()
def test_latents_are_those_of_the_model_as_it_is_now(change, small_run):
    with (run := open_run(small_run, device="cpu")).episodes as episodes:
        model = run.model

        def latents():
            return encode_paths(model, episodes, [0, 1], seen=run.seen).latents

        first = latents()
        assert set(run.seen.paths) == {0, 1}, "remembered"
        change(next(p for n, p in model.named_parameters() if n.endswith("weight")))
        assert not run.seen.paths
        now = latents()
        assert (now != first).any()
        np.testing.assert_array_equal(now, encode_paths(model, episodes, [0, 1]).latents)


def test_what_was_encoded_is_remembered_while_nothing_changes(small_run):
    with (run := open_run(small_run, device="cpu")).episodes:
        run.seen.paths[0] = kept = torch.zeros(1)
        assert run.seen.paths[0] is kept
        next(run.model.parameters()).requires_grad_(False)
        assert run.seen.paths[0] is kept
        other = dataclasses.replace(run)
        assert not other.seen.paths


def test_of_what_cannot_be_asked_for_its_numbers_nothing_is_remembered():
    run = Run(object(), [], [], [])
    run.seen.paths[0] = torch.zeros(1)
    assert not run.seen.paths
