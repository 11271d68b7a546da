"""A study: which rows are open, how settings are drawn, what a row holds, and that nothing is done
twice."""

import dataclasses
import json
import math
import shutil
import threading

import numpy as np
import pytest

from lewm.cli.main import main
from lewm.evaluation.outcome import AGENT, Evaluation
from lewm.evaluation.tasks import Pairs, Task
from lewm.experiments import recipes, study
from lewm.experiments.methods import METHODS, Knob, with_method
from lewm.experiments.study import Cell, Plan, open_cells, settings_drawn
from lewm.files import hold, write_json
from lewm.models.nn.trunk import TrunkConfig
from lewm.planning.trace import Effort
from lewm.report.rivals import study_of
from lewm.worlds.kit.opening import open_world
from tests.support import results


def row(cell, far=0.5, **more):
    task = {"rate": far, "pairs": 4, "solved": "f0", "drawn": "a"}
    made = study.made_with(study._experiment(more.pop("plan", Plan()), cell))
    return {"name": cell.name, **vars(cell), "made_with": made, "tasks": {"far": task}, **more}


# ------------------------------------------------------------------------------------------ methods


@pytest.fixture(autouse=True)
def drawn_encoder(tmp_path, monkeypatch):
    """No test needs weights that somebody must obtain."""
    monkeypatch.setenv("LEWM_WEIGHTS", str(tmp_path / "weights"))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_recipes_world_data_and_sizes(name):
    base, made = recipes.load("push-t-tiny"), recipes.load(f"push-t-tiny+{name}")
    assert (made.world, made.look, made.collection) == (base.world, base.look, base.collection)
    assert made.planning.solver == study.METHODS["lewm"].planning().solver
    own = METHODS[name].training.get("updates")  # one row is said to be outside the budget
    assert made.training.updates == (own or base.training.updates)
    frames = made.training.batch_size * made.training.window
    assert frames == base.training.batch_size * base.training.window
    assert made.model.context == base.model.context
    if isinstance(made.model, TrunkConfig):
        assert made.model.predictor_width == 192
        assert made.model.latent_dim == base.model.latent_dim
    for knob in METHODS[name].knobs:
        assert getattr(made.model, knob.field) == pytest.approx(knob.published), knob.field


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown method 'byl'.*'byol'"):
        with_method(recipes.load("two-room-tiny"), "byl")


def test_knobs_are_moved_as_what_they_are():
    assert Knob("x", 0.1).moved(10) == pytest.approx(1.0)
    assert Knob("m", 0.99, "memory").moved(10) == pytest.approx(0.999)
    assert Knob("m", 0.99, "memory").moved(0.1) == pytest.approx(0.9)
    assert Knob("m", 0.5, "memory").moved(0.1) == 0.0
    assert Knob("k", 256, "count").moved(0.1) == 26


# -------------------------------------------------------------------------------------------- draws


def test_settings_are_drawn_within_a_decade_and_evenly():
    drawn = [settings_drawn("pldm", i) for i in range(24)]
    assert drawn == [settings_drawn("pldm", i) for i in range(24)]
    for knob in METHODS["pldm"].knobs:
        logs = np.log10([each[knob.field] / knob.published for each in drawn])
        assert (logs >= -1).all()
        assert (logs <= 1).all()
        counts = np.histogram(logs, bins=4, range=(-1, 1))[0]
        assert (abs(counts - 6) <= 1).all(), counts
    other = [settings_drawn("pldm-wall", i)["variance_weight"] / 3.98 for i in range(24)]
    assert not np.allclose(other, [each["variance_weight"] / 16 for each in drawn])


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].knobs])
def test_every_draw_makes_a_model(name):
    base = recipes.load("two-room-tiny")
    for i in range(24):
        METHODS[name].config(base.model, **settings_drawn(name, i))


# --------------------------------------------------------------------------------------- open cells


def test_rates_come_first_then_seeds_with_the_best_then_draws():
    plan = Plan(methods=("lewm", "none"), rates=(1e-4, 1e-3, 1e-2), seeds=2, draws=2)
    rows = {}
    first = list(open_cells(plan, rows))
    assert [(c.method, c.rate) for c in first] == [
        (method, rate) for rate in (1e-3, 1e-4, 1e-2) for method in ("lewm", "none")
    ]
    for cell in first:
        best = cell.rate == 1e-2 if cell.method == "lewm" else cell.rate == 1e-4
        rows[cell.name] = row(cell, far=0.9 if best else 0.1)
    then = list(open_cells(plan, rows))
    assert then == [
        Cell("two-room-tiny", "lewm", 1e-2, 1),
        Cell("two-room-tiny", "none", 1e-4, 1),
        Cell("two-room-tiny", "lewm", 1e-2, 0, 0),
        Cell("two-room-tiny", "lewm", 1e-2, 0, 1),
    ], "what has no knobs has no draws"
    rows |= {cell.name: row(cell) for cell in then}
    assert not list(open_cells(plan, rows))


def test_a_rate_that_failed_is_never_the_best_and_all_failed_ends_a_method():
    plan = Plan(methods=("lewm",), rates=(1e-3, 1e-2), seeds=2)
    good, bad = (Cell("two-room-tiny", "lewm", rate, 0) for rate in plan.rates)
    rows = {good.name: row(good, far=0.0), bad.name: row(bad, error="diverged")}
    assert study.best_rate(plan, rows, "two-room-tiny", "lewm") == 1e-3
    rows[good.name] = row(good, error="diverged")
    assert not list(open_cells(plan, rows))


def test_a_row_of_a_method_that_was_changed_since_is_open_again(monkeypatch):
    """What it was made with is part of it; a setting that is new, and at its default, is not."""
    plan = Plan(methods=("lewm",), rates=(1e-3,), seeds=1)
    (cell,) = open_cells(plan, {})
    rows = {cell.name: row(cell)}
    assert not list(open_cells(plan, rows))
    changed = dataclasses.replace(METHODS["lewm"], changes={"sigreg_weight": 0.2})
    monkeypatch.setitem(METHODS, "lewm", changed)
    assert list(open_cells(plan, rows)) == [cell]
    same = dataclasses.replace(METHODS["lewm"], changes={"sigreg_weight": 0.1})
    monkeypatch.setitem(METHODS, "lewm", same)
    assert not list(open_cells(plan, rows))


def test_impossible_plans_are_refused():
    for changes, words in (
        ({"methods": ("byl",)}, "Did you mean 'byol'"),
        ({"worlds": ("two-rom-tiny",)}, "Did you mean 'two-room-tiny'"),
        ({"rates": ()}, "a world and a learning rate"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"rates": (0.0,)}, "rates must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            Plan(**changes)


# -------------------------------------------------------------------------------------- a whole one


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    plan = Plan(methods=("lewm", "byol"), rates=(1e-3,), seeds=1, pairs=6, updates=4, episodes=60)
    return out, plan, study.carry_out(plan, out)


def test_a_row_holds_what_the_table_needs(small):
    out, _, rows = small
    assert set(rows) == {f"two-room-tiny+{name}-lr0.001-seed0" for name in ("lewm", "byol")}
    for found in rows.values():
        assert "error" not in found
        assert found["updates"] == 4
        assert set(found["tasks"]) == {"near", "far", "across"}
        for task in found["tasks"].values():
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(task["solved"]), np.uint8))[:6]
            assert bits.mean() == pytest.approx(task["rate"])
            assert len(task["episodes"]) == task["pairs"] == 6
            assert set(task["floors"]) == {"do-nothing", "random", "straight-line"}
        assert found["parameters"] == 542_830
        assert found["train_cpu_s"] > 0
        assert found["plan_ms"] > 0
        assert math.isfinite(found["probe_r"])
        assert found["probe_controls"]["random encoder"] is not None
        assert set(found["error_of_copying"]) == {"1", "5"}
    near = [found["tasks"]["near"]["drawn"] for found in rows.values()]
    assert near[0] == near[1], "all methods play the same pairs"
    assert not list((out / "runs").iterdir()), "run folders go once their row is there"


def test_a_row_of_drawn_settings_holds_what_it_is_ranked_by(small, tmp_path):
    whole, plan, _ = small
    out = shutil.copytree(whole, tmp_path / "study")
    plan = dataclasses.replace(plan, methods=("lewm",), draws=1)
    found = study.carry_out(plan, out)["two-room-tiny+lewm-lr0.001-seed0-draw00"]
    assert found["settings"] == settings_drawn("lewm", 0)
    assert set(found["tasks"]) == {"far"}
    assert found["updates"] == 4
    write_json(out / "told.json", study.exported(plan, {found["name"]: found}))
    assert len(study_of(out / "told.json").rows) == 1


def test_the_worst_probe_is_of_what_moves():
    """The door, which never does, may be forgotten; an untrained encoder knows the wall best."""
    r = {"x": 0.9, "y": 0.8, "wall": 0.99, "door": 0.01}
    rivals = {"x": 0.5, "y": 0.6, "wall": 0.999, "door": 0.4}
    answer = results.probing(
        {name: results.variable(r[name], controls={"random encoder": rivals[name]}) for name in r}
    )
    told = study._of_probes(answer, ("wall", "door"))
    assert (told["probe_r"], told["probe_controls"]) == (0.8, {"random encoder": 0.5})
    assert told["probe"] == r
    assert study._of_probes(answer, ())["probe_r"] == 0.01


def test_success_is_told_where_the_straight_way_is_blocked():
    # from the left room: through the door, into the wall (solved, and not), within the room
    ends = [(90, 49, 140, 49), (90, 90, 140, 90), (90, 150, 140, 150), (40, 40, 80, 80)]
    starts, goals = np.split(np.array(ends, np.float32), 2, axis=1)
    n, rows = len(ends), np.arange(len(ends))
    every = np.ones(n, bool)
    pairs = Pairs(rows, rows, rows, rows, rows, starts, goals, ~every, every, every)
    steps = {AGENT: np.array([-1, 7, -1, 3]), "random": np.array([9, -1, -1, 9])}
    found = Evaluation(Task(episodes=n), pairs, steps, Effort(), n, {}, {})
    told = study._where_blocked(found, open_world("two-room", 1, image_size=16))
    assert told == {"pairs": 2, "rate": 0.5, "floors": {"random": 0.0}}
    short = Evaluation(Task(episodes=1), pairs[:1], {AGENT: np.array([0])}, Effort(), 1, {}, {})
    told = study._where_blocked(short, open_world("two-room", 1, image_size=16))
    assert told == {"pairs": 0, "rate": None, "floors": {}}


def test_rows_that_are_there_are_not_done_again(small, tmp_path, monkeypatch):
    out, plan, rows = small
    monkeypatch.setattr(study, "train_model", lambda *_: pytest.fail("trained again"))
    assert study.carry_out(plan, out) == rows
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(study.exported(plan, rows)))
    known = study.carry_out(plan, tmp_path / "elsewhere", known=[kept])
    assert known.keys() == rows.keys()


def test_the_episodes_of_pairs_are_exported_once(small):
    _, plan, rows = small
    tasks = [task for row in study.exported(plan, rows)["rows"] for task in row["tasks"].values()]
    assert sum("episodes" in task for task in tasks) == 3


def test_a_row_that_fails_says_why_and_the_study_goes_on(tmp_path, monkeypatch, small):
    source, plan, _ = small
    (tmp_path / "episodes-two-room-tiny-0.h5").write_bytes(
        (source / "episodes-two-room-tiny-0.h5").read_bytes()
    )
    made = []

    def broken(experiment, *_):
        made.append(experiment.recipe)
        raise ValueError("training diverged\nat update 1")

    monkeypatch.setattr(study, "train_model", broken)
    rows = study.carry_out(plan, tmp_path)
    assert made == ["two-room-tiny+lewm", "two-room-tiny+byol"]
    assert {found["error"] for found in rows.values()} == {"training diverged at update 1"}


def test_a_row_that_another_process_holds_is_left_to_it(tmp_path, monkeypatch, small):
    _, plan, _ = small
    done = []

    def instant(plan, cell, *_):
        done.append(cell.method)
        return row(cell, plan=plan)

    monkeypatch.setattr(study, "_row", instant)
    held = tmp_path / "rows" / f"{Cell('two-room-tiny', 'lewm', 1e-3, 0).name}.json"
    waited = []
    with hold(held, folder=False):

        def wait(seconds):
            waited.append(seconds)
            raise KeyboardInterrupt

        monkeypatch.setattr(study.time, "sleep", wait)
        with pytest.raises(KeyboardInterrupt):
            study.carry_out(plan, tmp_path)
    assert done == ["byol"]
    assert len(waited) == 1


def test_a_row_is_stale_once_anything_that_decides_it_is_another():
    """Its model, training, data, planning and world; words for people decide nothing."""
    made, replace = recipes.load("two-room-tiny+lewm"), dataclasses.replace
    planning = made.planning
    others = {
        "model": replace(made.model, sigreg_weight=0.3),
        "another model": METHODS["pldm"].config(made.model),
        "training": replace(made.training, learning_rate=0.5),
        "collection": replace(made.collection, episodes=3),
        "solver": replace(planning, solver=replace(planning.solver, num_candidates=33)),
        "objective": METHODS["vjepa"].planning(),
        "receding": replace(planning, receding=2),
        "world": "push-t",
        "image_size": 32,
        "look": "walls",
    }
    fields = {"another model": "model", "solver": "planning", "objective": "planning"}
    fields["receding"] = "planning"
    digests = [study.made_with(made)] + [
        study.made_with(replace(made, **{fields.get(name, name): value}))
        for name, value in others.items()
    ]
    assert len(set(digests)) == 1 + len(others)
    said = replace(made, hardware="x", cost="x", expected="x", source="x")
    assert study.made_with(said) == digests[0]


def test_workers_that_begin_together_wait_for_the_first(small):
    out, plan, rows = small
    held, released = threading.Event(), threading.Event()

    def first():
        with hold(out / "study.json", folder=False):
            held.set()
            released.wait()

    other = threading.Thread(target=first)
    other.start()
    assert held.wait(60)
    threading.Timer(0.2, released.set).start()
    assert study.carry_out(plan, out).keys() == rows.keys()
    other.join()


def test_another_study_in_the_folder_is_refused(small):
    out, *_ = small
    with pytest.raises(ValueError, match="another study"):
        study.carry_out(Plan(pairs=7), out)


def test_the_command_shows_exports_and_makes_the_page(small, tmp_path, capsys):
    out, *_ = small
    words = ["study", "collapse", "--out", str(out), "--only-show", "--seeds", "1"]
    words += ["--export", str(tmp_path / "rows.json"), "--page", str(tmp_path / "page.md")]
    assert main(words) == 0
    page = (tmp_path / "page.md").read_text()
    assert "| LeWM | 1 |" in page
    assert "| BYOL | 2 |" in page
    (picture,) = tmp_path.glob("page-*.svg")
    assert f"]({picture.name})" in page
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert main(["study", "colapse", "--out", str(out)]) == 2
    assert "Did you mean 'collapse'" in capsys.readouterr().err
