"""What an experiment writes down is what was measured, of the run that it names: what it hands over
and what comes back are spied on, and no two numbers are equal."""

import dataclasses
import hashlib
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm import registry
from lewm.evaluation.outcome import AGENT
from lewm.evaluation.tasks import Task
from lewm.experiments import ablations, backbones, book, pipeline, recipes, reproduce, study, tuning
from lewm.experiments.book import Book
from lewm.experiments.methods import METHODS, SEARCH
from lewm.experiments.study import Cell, Plan
from lewm.experiments.tuning import Search, Tried
from lewm.files import read_json, write_json
from lewm.planning.config import PlanningConfig
from lewm.runs import checkpoints
from lewm.stats import bootstrap, wilson
from tests.support import distinct
from tests.support.evaluated import RATES, evaluation


def rate(policy, counted):
    successes, n = RATES[policy][counted]
    low, high = wilson(successes, n)
    return {"rate": successes / n, "low": low, "high": high}


class Opened(SimpleNamespace):
    """A run as `open_run` gives it."""

    def __init__(self, **more):
        model = torch.nn.Linear(3, 2)
        model.bias.requires_grad = False
        model.latent_dim = 192
        super().__init__(
            model=model,
            planning="the run's planning",
            episodes=nullcontext("the run's episodes"),
            fit_ids=(1, 2, 3),
            test_ids=(7, 9),
            metrics=(
                {"update": 3, "latent_std": 0.1, "seconds": 1.0},
                {"update": 9, "latent_std": 0.4, "seconds": 5.0, "alarm": "look"},
            ),
            **more,
        )


# ------------------------------------------------------------------------------------------- study


def test_a_row_is_of_its_cell_and_of_what_was_held_out(monkeypatch, tmp_path):
    seen, opened = {"played": []}, Opened(open_world=None)
    cell, plan = Cell("two-room-tiny", "pldm", 0.0125, 2), Plan(pairs=7, updates=9, episodes=61)

    def collect(experiment, data, report):
        seen["collected"] = experiment.collection.seed, experiment.collection.episodes, data
        return SimpleNamespace(close=lambda: None)

    def train(experiment, data, folder, report):
        seen["trained"] = experiment, data, folder

    def evaluate(*of, report):
        seen["played"].append(of)
        return evaluation(of[-1])

    def analyse(run, names, report, seed, settings):
        seen["asked"] = run, seed, settings
        return {"probing": distinct.probing(), "geometry": distinct.geometry()}

    monkeypatch.setattr(study, "collect_episodes", collect)
    monkeypatch.setattr(study, "train_model", train)
    monkeypatch.setattr(study, "evaluate", evaluate)
    monkeypatch.setattr(study, "analyse", analyse)
    monkeypatch.setattr(study, "open_run", lambda folder, data, device: opened)
    monkeypatch.setattr(study, "open_recipe_world", lambda experiment, n: ("world", n))
    monkeypatch.setattr(study, "plan_ms", lambda experiment, model: 17.25)
    row = study._row(plan, cell, tmp_path, True, lambda progress: None)

    data = tmp_path / "episodes-two-room-tiny-2.h5"
    assert seen["collected"] == (2, 61, data)
    experiment, trained_on, folder = seen["trained"]
    training = experiment.training
    assert (trained_on, folder) == (data, tmp_path / "runs" / cell.name)
    assert (training.learning_rate, training.seed, training.updates) == (0.0125, 2, 9)
    assert training.checkpoint_every <= 9
    assert experiment.recipe == "two-room-tiny+pldm"
    for (*played, task), (name, of) in zip(seen["played"], study.TASKS.items(), strict=True):
        assert played[:2] == [opened.model, "the run's planning"]
        assert played[2:] == [("world", 7), opened.episodes, (7, 9)], name
        assert task == of(7, 2)
    run, seed, settings = seen["asked"]
    assert (run, seed) == (opened, 2)
    assert settings == {"probing": study.PROBING, "geometry": study.GEOMETRY}

    assert "error" not in row
    for name, value in {
        "name": cell.name,
        "world": "two-room-tiny",
        "method": "pldm",
        "rate": 0.0125,
        "seed": 2,
        "draw": None,
        "settings": {},
        "pairs": 7,
        "episodes": 61,
        "updates": 9,
        "parameters": 6,
        "tokens": 1,
        "numbers": 192,
        "knobs": 4,
        "plan_ms": 17.25,
        "alarm": "look",
        "last": {"latent_std": 0.4},
        # what probes and geometry say
        "probe_r": 0.868,
        "probe": {"x": 0.947, "y": 0.868},
        "probe_controls": {"random encoder": 0.868 - 0.42, "pixels": 0.868 - 0.23},
        "latent_std": 0.88,
        "effective_rank": 4.9,
        "straightness": 0.13,
        "error_of_copying": {"1": 0.07 / 0.41},
        "error_of_strangers": {"1": 0.07 / 3.7},
        "cost": "temporal",
        "cost_rank_steps": 0.97 - 0.3,
        "cost_rank_states": 0.76 - 0.3,
        "cost_rank_across": 0.57 - 0.3,
    }.items():
        assert row[name] == pytest.approx(value) if value is not None else row[name] is None, name
    assert list(row["tasks"]) == ["near", "far", "across"]
    assert [row["tasks"][name]["task"] for name in row["tasks"]] == [
        "offset 25",
        "offset 75",
        "other room",
    ]


def test_a_task_of_a_row_is_of_strict_pairs():
    found = evaluation()
    told, strict = study._outcome(found), found.pairs.strict
    assert (
        told.pop("drawn")
        == hashlib.sha256(
            np.stack([found.pairs.start_rows[strict], found.pairs.goal_rows[strict]])
            .astype("<i8")
            .tobytes()
        ).hexdigest()[:16]
    )
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(told.pop("solved")), np.uint8))
    assert bits[:7].tolist() == [1, 0, 1, 0, 1, 1, 0]
    assert told == {
        "task": "offset 75",
        **rate(AGENT, "strict"),
        "pairs": 7,
        "floors": {"random": 2 / 7, "do-nothing": 0.0},
        "others": {"exact": 3 / 7},
        "episodes": [20, 21, 22, 23, 23, 24, 25],
    }


def test_a_plan_takes_the_fewest_milliseconds_of_a_few_tries(monkeypatch):
    seconds, made = iter((0.005, 0.003, 0.004)), {}

    class Agent:
        def __init__(self, model, config, spec, seeds, clock):
            made.update(config=config, clock=clock)

        def reset(self):
            self.effort = SimpleNamespace(seconds_per_plan=next(seconds))

        def act(self, pictures, goals):
            made["shape"] = pictures.shape, goals.shape

    monkeypatch.setattr(study, "Agent", Agent)
    world = SimpleNamespace(spec=None, render=lambda: np.zeros((16, 2, 2, 3), np.uint8))
    monkeypatch.setattr(study, "open_recipe_world", lambda experiment, n: world)
    experiment = recipes.load("two-room-tiny+vjepa")
    assert study.plan_ms(experiment, None) == 3.0
    assert made["config"] is experiment.planning
    assert made["clock"] is study.time.process_time, "a clock on the wall measures the machine"


def test_settings_that_are_drawn_are_trained_with():
    for method in ("pldm", "byol"):
        cell = Cell("two-room-tiny", method, 1e-3, 0, 3)
        model = study._experiment(Plan(), cell).model
        assert cell.settings == study.settings_drawn(method, 3)
        assert {name: getattr(model, name) for name in cell.settings} == cell.settings
        own = study._experiment(Plan(), Cell("two-room-tiny", method, 1e-3, 0)).model
        assert all(getattr(own, name) != value for name, value in cell.settings.items())


OBJECTIVES = {
    **dict.fromkeys(("vjepa", "vjepa2-ac", "vjepa2-ac-efficientnet"), "l1"),
    **dict.fromkeys(("dreamer", "dreamer-long"), "own"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_plans_by_the_distance_that_it_was_trained_in(name):
    found = recipes.load(f"two-room-tiny+{name}").planning
    kind = registry.load("objectives", OBJECTIVES.get(name, "l2"))
    assert type(found.objective) is kind
    if kind is registry.load("objectives", "own"):
        assert found.objective.judged_by == "embedding"
    assert found == PlanningConfig(found.objective, SEARCH)
    assert (SEARCH.num_candidates, SEARCH.num_elites, SEARCH.num_iterations) == (100, 10, 5)


def test_a_file_of_a_study_says_of_each_method_what_it_says():
    told = study.exported(Plan(), {})["methods"]
    for name, method in METHODS.items():
        own = {field: getattr(method, field) for field in told[name] if field != "knobs"}
        assert told[name] == {**own, "knobs": len(method.knobs)}


# ------------------------------------------------------------------------------------------ tuning


@pytest.fixture
def tuned(monkeypatch):
    """What a search for lambda trained, asked and played."""
    seen = {"trained": [], "asked": [], "played": []}

    def measures(run, seed, report):
        seen["asked"].append((run, seed))
        return {
            "probe_controls": {"random encoder": 0.3},
            "probe_r": 0.91,
            "effective_rank": 4.2,
            "latent_std": 0.7,
            "error_of_strangers": {"1": 0.11, "5": 0.55},
        }

    def evaluate(*of):
        seen["played"].append(of)
        return evaluation(of[5])

    monkeypatch.setattr(tuning, "train_model", lambda *of: seen["trained"].append(of[:3]))
    monkeypatch.setattr(tuning, "open_run", lambda folder, data, device: Opened(folder=folder))
    monkeypatch.setattr(tuning, "measures", measures)
    monkeypatch.setattr(tuning, "evaluate", evaluate)
    monkeypatch.setattr(tuning, "open_recipe_world", lambda experiment, n: ("world", n))
    return seen


def test_a_short_training_is_of_its_lambda_and_seed(tuned, tmp_path):
    experiment = pipeline.seeded(recipes.load("two-room-tiny"), 4)
    how = Search(updates=33, pairs=11)
    found = tuning._attempt(experiment, how, 0.27, 5, "data", tmp_path, lambda _: None)
    assert found == Tried(0.27, 5, False, 0.55, 4.2, 0.7, 0.91)
    ((trained, data, folder),) = tuned["trained"]
    assert (trained.lewm.sigreg_weight, data, folder) == (0.27, "data", tmp_path / "lambda-0.27-5")
    training = trained.training
    assert (training.updates, training.seed, training.holdout_seed) == (33, 5, 4)
    assert training.checkpoint_every <= 33
    ((_, seed),) = tuned["asked"]
    assert seed == 5


def test_the_confirming_training_is_full_and_judged_on_strict_pairs(tuned, tmp_path):
    experiment = pipeline.seeded(recipes.load("two-room-tiny"), 4)
    how = Search(updates=33, pairs=11)
    told = tuning._confirm(experiment, how, 0.27, 5, "data", tmp_path, lambda _: None)
    ((trained, data, folder),) = tuned["trained"]
    assert (trained.lewm.sigreg_weight, data, folder) == (0.27, "data", tmp_path / "confirmed")
    assert trained.training.updates == experiment.training.updates
    assert (trained.training.seed, trained.training.holdout_seed) == (5, 4)
    tasks = [Task.along(offset, 11, 5) for offset in (25, 75)]
    for (_, planning, world, _, ids, task, floors, _), expected in zip(
        tuned["played"], tasks, strict=True
    ):
        assert (planning, world, ids) == ("the run's planning", ("world", 11), (7, 9))
        assert (task, floors) == (expected, ())
    assert told == {task.name: {**rate(AGENT, "strict"), "pairs": 7} for task in tasks}


@pytest.mark.parametrize(
    ("changes", "too_large"),
    [
        ({}, False),
        ({"error": 0.21}, True),
        ({"error": 0.19}, False),
        ({"rank": 8.1}, True),
        ({"rank": 7.9}, False),
        ({"error": 0.21, "collapsed": True}, False),
        ({"error": None}, False),
    ],
)
def test_lambda_is_too_large_from_twice_the_error_or_the_rank_on(changes, too_large):
    healthy = Tried(0.1, 0, False, 0.1, 4.0, 0.7, 0.9)
    assert tuning._too_large(dataclasses.replace(healthy, **changes), healthy) is too_large


# ------------------------------------------------------------------------- ablations and backbones


@pytest.mark.parametrize("module", [ablations, backbones])
def test_every_argument_arrives_in_every_row(module, monkeypatch, tmp_path):
    called, said = [], []

    def row(experiment, name, *more):
        out, pairs = more[-2:]
        seed = more[0] if module is ablations else experiment.training.seed
        called.append(
            (
                experiment.recipe,
                name,
                seed,
                experiment.collection.episodes,
                experiment.training.updates,
                out,
                pairs,
            )
        )
        return {"number": len(called)}

    monkeypatch.setattr(module, "row", row)
    monkeypatch.setattr(
        module, "as_table", lambda rows: ["head", "---", *(str(r["number"]) for r in rows)]
    )
    names = ["base", "lambda-2"] if module is ablations else ["attention", "mamba"]
    flag = "--variants" if module is ablations else "--mixers"
    words = ["--out", str(tmp_path), "--seeds", "4", "6", flag, *names, "--pairs", "9"]
    words += ["--recipe", "two-room-walls-tiny", "--episodes", "71", "--updates", "13"]
    monkeypatch.setattr(sys, "argv", ["x", *words])
    module.main(said.append)
    assert called == [
        ("two-room-walls-tiny", name, seed, 71, 13, tmp_path, 9)
        for seed in (4, 6)
        for name in names
    ]
    file = tmp_path / ("ablations.json" if module is ablations else "backbones.json")
    assert read_json(file) == {"rows": [{"number": k} for k in (1, 2, 3, 4)]}
    assert said == ["1", "2", "3", "4", "head\n---\n1\n2\n3\n4"]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_of_ablations_has_each_number_under_its_name():
    found = {
        "variant": "base",
        "seed": 3,
        "success": {"rate": 0.91, "low": 0.85, "high": 0.95},
        "far": {"rate": 0.42, "low": 0.37, "high": 0.49},
        "probe_r": 0.83,
        "latent_std": 0.74,
        "effective_rank": 4.6,
        "prediction": 0.02,
        "copying": 0.5,
        "alarms": 2,
        "reports": 20,
    }
    heads, _, line = map(cells, ablations.as_table([found]))
    assert dict(zip(heads, line, strict=True)) == {
        "variant": "base",
        "seed": "3",
        "success": "91.0% [85.0, 95.0]",
        "offset 75": "42.0% [37.0, 49.0]",
        "worst probe r": "0.83",
        "latent std": "0.74",
        "rank": "4.6",
        "prediction": "0.02",
        "of copying": "0.04",
        "alarm": "2 of 20",
    }


def test_a_line_of_backbones_has_each_number_under_its_name():
    error = {
        "of_variance": {"1": 0.1, "5": 0.25, "10": 0.3, "20": 0.45},
        "of_copying": {"1": 0.6, "5": 0.7, "10": 0.8, "20": 0.9},
    }
    found = {
        **{"mixer": "titans", "seed": 3, "parameters": 543_942, "mflop_per_step": 1.25},
        **{"ms_per_step": 4.5, "attention_ms_per_step": 1.5, "candidates": 34},
        "variants": {
            "frozen": {"error": error, "success": {"25": {"rate": 0.9, "low": 0.8, "high": 0.95}}}
        },
    }
    heads, _, line = map(cells, backbones.as_table([found]))
    assert dict(zip(heads, line, strict=True)) == {
        **{"mixer": "titans frozen", "seed": "3", "parameters": "543,942", "MFLOP/step": "1.25"},
        **{"ms/step": "4.5", "N": "34", "error at 1": "0.1", "error at 5": "0.25"},
        **{"error at 10": "0.3", "error at 20": "0.45", "offset 25": "90.0% [80.0, 95.0]"},
    }


def test_a_slower_mixer_plans_with_fewer_candidates_on_what_was_held_out(monkeypatch, tmp_path):
    experiment = backbones.settings("two-room-tiny", 3, None, None)
    predictor = SimpleNamespace(recurrent=True, frozen_memory=None, parameters=lambda: [])
    model = SimpleNamespace(predictor=predictor, spec="spec", parameters=lambda: [])
    played, erred = [], []

    def evaluate(model, config, world, episodes, held_out, task, floors):
        solver = config.solver
        played.append(
            (predictor.frozen_memory, solver.num_candidates, solver.num_elites, held_out, task)
        )
        return evaluation(task)

    def error(model, episodes, held_out, seed):
        erred.append((predictor.frozen_memory, held_out, seed))
        return len(erred)

    built = SimpleNamespace(eval=lambda: "attention")
    monkeypatch.setattr(type(experiment.model), "build", lambda self, spec: built)
    monkeypatch.setattr(backbones, "Curtained", lambda world: world)
    monkeypatch.setattr(backbones, "open_recipe_world", lambda *_: None)
    monkeypatch.setattr(
        backbones, "_collected", lambda *_: SimpleNamespace(path="path of the episodes")
    )
    monkeypatch.setattr(backbones, "train", lambda *of, **_: write_json(
        of[3] / checkpoints.EXPERIMENT, {"split": {"train": [0, 2], "heldout": [1, 4]}}
    ))  # fmt: skip
    monkeypatch.setattr(checkpoints, "load", lambda run: model)
    monkeypatch.setattr(
        checkpoints, "metrics", lambda run: [{"latent_std": 0.1, "effective_rank": 1.0}] * 2
    )
    monkeypatch.setattr(backbones, "step_ms", lambda one, other: [4.0, 1.2])
    monkeypatch.setattr(backbones, "step_mflop", lambda model: 0.75)
    monkeypatch.setattr(backbones, "open_loop_error", error)
    monkeypatch.setattr(backbones, "evaluate", evaluate)
    found = backbones.row(experiment, "titans", tmp_path, 6)
    task = Task.along(25, 6, seed=3)
    assert played == [(frozen, 30, 3, [1, 4], task) for frozen in (False, True)]
    assert erred == [(frozen, [1, 4], 3) for frozen in (False, True)]
    assert (found["ms_per_step"], found["attention_ms_per_step"]) == (4.0, 1.2)
    assert (found["candidates"], found["mflop_per_step"], found["seed"]) == (30, 0.75, 3)
    success = {"25": {**rate(AGENT, "strict"), "pairs": 7}}
    assert found["variants"] == {
        "writing": {"error": 1, "success": success},
        "frozen": {"error": 2, "success": success},
    }


# ---------------------------------------------------------------------------- pipeline, reproduce


def test_one_seed_is_that_of_data_training_and_heads():
    found = pipeline.seeded(recipes.load("two-room-tiny"), 11)
    assert {found.collection.seed, found.training.seed, found.fitting.seed} == {11}


def test_a_result_holds_each_rate_under_its_way_of_counting():
    found = evaluation()
    door = np.arange(10) < 4  # of the paper's: 0, 1 and 2 solved by the agent, 3 by random alone
    spec = SimpleNamespace(tolerance=8.0, picture_extent=224.0, state_units=("px", "m"))
    told = pipeline._success(found, door, spec)
    for name, policy, counted in (("success", AGENT, "paper"), ("strict", AGENT, "strict")):
        chosen = getattr(found.pairs, counted)
        low, high = bootstrap(
            np.mean, found.steps()[chosen] >= 0, groups=found.pairs.start_episodes[chosen]
        )
        ends = {"episode_low": low, "episode_high": high}
        assert told[name] == {**rate(policy, counted), "episodes": 7, **ends}
    assert told["floors"] == {
        name: {**rate(policy, "paper"), "episodes": 7}
        | {"strict": {**rate(policy, "strict"), "episodes": 7}}
        for name, policy in (("random", "random"), ("do_nothing", "do-nothing"))
    }
    through = {name: (of["rate"], of["episodes"]) for name, of in told["through_door"].items()}
    assert through == {"agent": (3 / 4, 4), "random": (3 / 4, 4), "do_nothing": (2 / 4, 4)}
    assert told["solved_at_start"] == 3 / 7
    assert told["median_steps"] == 10.5
    assert (told["seconds_per_plan"], told["predictor_calls_per_plan"]) == (0.25, 50)
    assert (told["planned_together"], told["protocol"]["offset"]) == (5, 75)
    assert told["tolerance"] == {"value": 8.0, "of": 224.0, "unit": "px"}


def test_pairs_go_through_the_door_if_their_ends_lie_in_two_rooms():
    found = evaluation()
    world = SimpleNamespace(regions=lambda states: (states[:, 0] >= 60).astype(int))
    # starts 0, 2, ... 18 are in the first room; goals 50, 52, ... 68
    expected = np.arange(50, 70, 2) >= 60
    assert pipeline._through_door(world, found).tolist() == expected.tolist()
    assert pipeline._through_door(SimpleNamespace(regions=lambda _: None), found) is None


def test_a_run_of_a_recipe_opens_its_world_in_its_look_and_in_any_other(monkeypatch, tmp_path):
    opened, experiment = [], recipes.load("two-room-walls-tiny")
    monkeypatch.setattr(pipeline, "open_world", lambda *of, **more: opened.append((of, more)))
    monkeypatch.setattr(pipeline, "head_names", lambda _: ("temporal",))
    monkeypatch.setattr(pipeline, "load_head", lambda folder, name, model: (name, model))
    monkeypatch.setattr(checkpoints, "metrics", lambda _: [{"update": 3}])
    split = {"train": [4, 6], "heldout": [5, 9]}
    run = pipeline._opened(experiment, "planning", "model", "episodes", split, tmp_path)
    run.open_world(7)
    run.open_world(2, "walls,agent_color=00ffff")
    pipeline.open_recipe_world(experiment, 5)
    assert opened == [
        (("two-room", n), {"image_size": 64, "look": look})
        for n, look in ((7, "walls"), (2, "walls,agent_color=00ffff"), (5, "walls"))
    ]
    assert (run.model, run.episodes, run.planning) == ("model", "episodes", "planning")
    assert (tuple(run.fit_ids), tuple(run.test_ids)) == ((4, 6), (5, 9))
    assert (run.heads, run.path) == ({"temporal": ("temporal", "model")}, tmp_path)


def test_time_of_a_stage_is_summed_over_calls(tmp_path, monkeypatch):
    clock = iter((10.0, 12.5, 20.0, 21.0, 30.0, 34.0))
    monkeypatch.setattr(book.time, "perf_counter", lambda: next(clock))
    for stages in (("train",), ("train", "fit")):
        found = Book.open(tmp_path / "book.json", {"seed": 1})
        assert found.resumed is (len(stages) == 2)
        for stage in stages:
            with found.timed(stage):
                pass
    assert found.seconds == {"train": 3.5, "fit": 4.0, "total": 7.5}


def test_a_table_of_probes_has_each_reading_under_its_rival():
    result = distinct.probing()
    heads, _, *lines = map(cells, reproduce._probe_table(result.variables))
    x, y = (dict(zip(heads, line, strict=True)) for line in lines)
    assert x == {
        **{"variable": "x", "r, ridge": "0.947", "95% interval": "[0.926, 0.954]"},
        **{"r, MLP": "0.977", "random encoder": "0.527", "pixels": "0.717"},
        **{"RMSE": "3.84", "unit": "px"},
    }
    assert (y["variable"], y["r, ridge"], y["unit"]) == ("y", "0.868", "m")
    told = {"command": "c", "seconds": {"train": 12.0, "fit": 3.0}, "parameters": 1234}
    told |= {"machine": {"cpus": 8}}
    page = reproduce._markdown(told, evaluation(), result)
    assert "mean error of heading: 12.4 degrees by ridge, 9.3 by MLP (90 if guessed)" in page
    assert "1,234 parameters; train 12 s, fit 3 s; 8 CPU cores." in page
