"""What commands say and hand on is what they were given: every number that comes back differs from
all others, and each is looked for under its name."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lewm.cli import console
from lewm.cli.commands import collect, evaluate, export, fit, plan, quickstart, report, study, train
from lewm.cli.commands import tune_lambda as tune
from lewm.cli.main import main
from lewm.data import collecting
from lewm.evaluation.comparison import Suite
from lewm.evaluation.tasks import Task
from lewm.experiments import reproduce
from lewm.experiments.tuning import Tried, Tuning
from lewm.planning.realtime import Drive
from lewm.report.animation import Frame
from lewm.report.record import Answer
from tests.support import results
from tests.support.evaluated import evaluation


@pytest.fixture
def tables(monkeypatch):
    """Tables that were shown: title -> (heads, rows); and what was said."""
    seen = {}

    def table(header, rows, numbers_from=1, title=""):
        seen[title] = tuple(header), [tuple(map(str, row)) for row in rows]

    monkeypatch.setattr(console, "table", table)
    return seen


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(console, "say", lambda text: lines.append(text))
    return lines


def cells(table):
    heads, rows = table
    return [dict(zip(heads, row, strict=True)) for row in rows]


# -------------------------------------------------------------------------------------------- plan


def test_plan_hands_on_its_budget_and_a_probe_of_what_was_trained_on(
    small_run, tmp_path, monkeypatch, said
):
    drawn, probed, played = [], [], []
    recordings = [results.recording(success=False), results.recording(steps=30)]

    def record(model, config, world, episodes, pairs, protocol):
        played.append((len(pairs), protocol, world.num_envs))
        return recordings

    def draw(recording, budget, view):
        drawn.append((recording, budget, view.extent, view.tolerance, view.read([3])))
        return [Frame(np.zeros((4, 4, 3), np.uint8), 90)]

    def probe(model, episodes, ids, readings):
        probed.append((ids, len(readings)))
        return SimpleNamespace(predict=lambda latents: ("read", latents))

    opened = []
    known = plan.open_run
    monkeypatch.setattr(plan, "open_run", lambda *of: opened.append(known(*of)) or opened[0])
    monkeypatch.setattr(plan, "record_episodes", record)
    monkeypatch.setattr(plan, "draw_episode", draw)
    monkeypatch.setattr(plan, "steady_probe", probe)
    words = ["--offset=15", "--episodes=2", "--seed=4", "--out", str(tmp_path / "x.gif")]
    assert main(["plan", str(small_run), *words]) == 0
    assert played == [(2, Task.along(15, 2, 4), 2)]
    spec = opened[0].world(1).spec
    told = (spec.picture_extent, spec.tolerance, ("read", [3]))
    assert drawn == [(each, 30, *told) for each in recordings]
    ((ids, _),) = probed
    assert ids == opened[0].fit_ids
    assert [line for line in said if line.startswith("episode")] == [
        "episode 1: goal not reached, 2 plans",
        "episode 2: goal reached after 30 steps, 6 plans",
    ]


def test_in_real_time_each_goal_is_seen_from_its_own_picture(monkeypatch):
    found, pairs = [], evaluation().pairs[[1, 4]]
    episodes = SimpleNamespace(rows=lambda name, rows: np.array([f"{name} {row}" for row in rows]))
    opened, world = SimpleNamespace(model="model", episodes=episodes), SimpleNamespace(spec="spec")
    world.render = lambda states: ("seen", states[0, 0])
    drives = iter([drive(7, 0), drive(9, 1)])

    class Agent:
        trace = ("replan",)

        def __init__(self, *of, trace):
            found.append(("agent", *of, trace))

        def reset(self, seeds):
            found.append(("reset", *seeds))

    def driven(agent, world, goal_pixels, rate_hz, budget):
        found.append(("drive", *goal_pixels, rate_hz, budget))
        return next(drives)

    monkeypatch.setattr(plan, "Agent", Agent)
    monkeypatch.setattr(plan, "drive", driven)
    monkeypatch.setattr(plan, "place", lambda world, a, b: found.append(("place", *a[0], *b[0])))
    task = Task.along(15, 2, seed=4)
    made, recordings = plan._drive(opened, "config", world, pairs, task, 20.0, True)
    seeds = [pairs[[k]].seeds(1, 4)[0] for k in (0, 1)]
    assert found == [
        ("agent", "model", "config", "spec", [4], True),
        ("place", 2, 3, 52, 53),
        ("reset", seeds[0]),
        ("drive", "pixels 176", 20.0, 30),
        ("place", 8, 9, 58, 59),
        ("reset", seeds[1]),
        ("drive", "pixels 179", 20.0, 30),
    ]
    for one, recording, row, goal in zip(made, recordings, (176, 179), (52, 58), strict=True):
        assert recording.goal_pixels == f"pixels {row}"
        assert recording.goal_state[0] == goal
        assert recording.pixels == ("seen", one.states[0, 0])
        assert (recording.success_step, len(recording.actions)) == (one.success_step, 4)


def drive(first, cut_short, success=3, late=0.02):
    latency = np.array([late, 0.001, 0.06, 0.002])
    replanned = np.array([True, False, True, False])
    states = np.full((5, 2), first, float)
    return Drive(20.0, latency, replanned, cut_short, 0.25, states, np.zeros((4, 2)), success)


def test_drives_are_counted(tables, said):
    told = plan._show([drive(1, 2, None), drive(2, 1), drive(3, 0, 0)], 20.0)
    assert told["achieved_hz"] == 12 / 0.75
    assert (told["successes"], told["cut_short"], told["rate_hz"]) == (2, 3, 20.0)
    assert told["latency"]["all"]["steps"] == 12
    assert told["latency"]["replanning"]["steps"] == 6
    assert told["latency"]["all"]["missed_share"] == 3 / 12
    assert told["latency"]["replanning"]["missed_share"] == 3 / 6
    assert list(tables) == ["20 steps per second, 50 ms each; 16 achieved"]
    assert said == ["2 of 3 goals reached; 6 plans, 3 of them cut short by their deadline"]


# --------------------------------------------------------------------------- tables of commands


def test_heads_are_tabled_under_their_names(small_run, monkeypatch, tables):
    columns = {
        "loss": 0.11,
        "heldout_loss": 0.22,
        "rank_correlation": 0.93,
        "l2_rank_correlation": 0.74,
        "frames": 2048,
        "seconds": 6.5,
    }
    monkeypatch.setattr(fit, "fit_heads", lambda *_: {"temporal": columns})
    assert main(["fit", str(small_run), "temporal"]) == 0
    (row,) = cells(tables[f"heads of {small_run}"])
    expected = {name.replace("_", " "): console.number(value) for name, value in columns.items()}
    assert row == {"head": "temporal", **expected}


def test_a_quickstart_shows_both_ways_of_counting(tables, monkeypatch):
    shown = []
    monkeypatch.setattr(console, "facts", lambda values, title="": shown.append(values))
    monkeypatch.setattr(console, "alarm", lambda text: shown.append(text))

    def score(rate, **more):
        return {"rate": rate, "low": rate - 0.02, "high": rate + 0.03, "episodes": 200, **more}

    quickstart._show(
        {
            "success": score(0.91),
            "strict": score(0.87),
            "floors": {
                "do_nothing": score(0.13, strict=score(0.04)),
                "random": score(0.31, strict=score(0.22)),
            },
            "probe_r": {"x": 0.98},
            "seconds": {"total": 77.0},
            "alarm": "look",
        }
    )
    rows = cells(tables["200 goals"])
    assert [row["policy"] for row in rows] == ["agent", "do nothing", "random"]
    for row, paper, strict in zip(rows, (91, 13, 31), (87, 4, 22), strict=True):
        assert row["success"] == f"{paper}.0% [{paper - 2}.0%, {paper + 3}.0%]"
        assert row["of what does not begin solved"] == (
            f"{strict}.0% [{strict - 2}.0%, {strict + 3}.0%]"
        )
    assert shown == [{"probe r": {"x": 0.98}, "seconds": {"total": 77.0}}, "look"]


def test_a_search_for_lambda_is_tabled(tables, said, monkeypatch, tmp_path):
    tried = (
        Tried(0.3, 5, False, 0.21, 4.32, 0.76, 0.9876),
        Tried(0.02, 4, True, None, 1.23, 0.0045, None),
    )
    score = {"rate": 0.95, "low": 0.91, "high": 0.98, "pairs": 200}
    found = Tuning(0.25, (0.01, 0.04), (1.5, 2.5), tried, (), {"offset 25": score}, 18)
    monkeypatch.setattr(tune, "tune_lambda", lambda *_: found)
    assert main(["tune-lambda", "--out", str(tmp_path)]) == 0
    title = "2 short runs; a grid to the same tolerance would take 18"
    assert cells(tables[title]) == [
        {
            **{"lambda": "0.02", "seed": "4", "state": "collapsed", "rank": "1.23"},
            **{"std": "0.0045", "error, 5 blocks": "-", "worst r": "-"},
        },
        {
            **{"lambda": "0.3", "seed": "5", "state": "alive", "rank": "4.32", "std": "0.76"},
            **{"error, 5 blocks": "0.21", "worst r": "0.9876"},
        },
    ]
    assert said == [
        "lambda 0.25; lower edge 0.01 to 0.04, upper edge 1.5 to 2.5.",
        "confirmed, offset 25: 95.0% [91.0%, 98.0%] of 200",
    ]


@pytest.mark.parametrize("command", ["reproduce", "train"])
def test_recipes_are_listed_under_their_names(command, tables, said):
    assert main([command, "--list" if command == "reproduce" else "--help"]) == 0
    names = {"recipe": "recipe", "hardware": "hardware", "cost": "cost", "expect": "expected"}
    names |= {"source": "source"} if command == "reproduce" else {}
    (table,) = tables.values()
    rows = cells(table)
    known = [reproduce.recipes.load(name) for name in reproduce.recipes.RECIPES]
    assert rows == [
        {head: str(getattr(recipe, field)) for head, field in names.items()} for recipe in known
    ]
    assert hasattr(train, "run") is False


# ---------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize("every", [1, 2, 5])
def test_collect_says_what_the_file_holds(every, monkeypatch, said, tmp_path):
    summary = {"image_size": 48, "bytes": 12_340_000, "episodes": 7, "steps": 707}

    class File:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def summary(self):
            return summary

    monkeypatch.setattr(collecting, "collect", lambda *_, **__: File())
    collect.run("two-room", tmp_path / "x.h5", every=every)
    apart = f", one per {every} env steps" if every > 1 else ""
    assert said == [
        f"nothing to do: {tmp_path / 'x.h5'} holds 7 episodes, 707 frames of 48 px, 12.3 MB{apart}."
    ]


def test_export_counts_megabytes(monkeypatch, tmp_path):
    shown = []
    for name, size in (("a", 1_500_000), ("b", 250_000)):
        (tmp_path / name).write_bytes(bytes(size))
    monkeypatch.setattr(export, "save_pieces", lambda *_: [tmp_path / "a", tmp_path / "b"])
    monkeypatch.setattr(console, "facts", lambda values, title="": shown.append(values))
    export.run(Path("run"), tmp_path / "out", format="pieces")
    assert shown == [{"weights": "half precision, 1.8 MB", "files": ["a", "b"]}]


def test_a_report_names_what_is_missing_and_nothing_else(monkeypatch, said, tmp_path):
    answers = {
        "probing": Answer(results.probing()),
        "economy": Answer(why="Not asked yet."),
        "planning": Answer(why="Not asked yet."),
    }
    whole = {name: Answer(results.probing()) for name in answers}

    def record(path):
        return SimpleNamespace(
            path=path, quoted=f"'{path}'", answers=whole if path.name == "b" else answers
        )

    monkeypatch.setattr(report, "record_of", record)
    monkeypatch.setattr(report, "render", lambda records, command, study, lab: command)
    report.run(Path("a"), (Path("b"),), tmp_path / "page.html")
    assert said[0] == "a: without economy, planning. For these: lewm analyse 'a'"
    assert len(said) == 2
    page = (tmp_path / "page.html").read_text()
    assert page == f"lewm report a b --out {tmp_path / 'page.html'}"


@pytest.mark.parametrize("left", [0, 3])
def test_a_study_says_how_much_is_left(left, monkeypatch, said, tmp_path):
    monkeypatch.setattr(study, "rows_of", lambda *_: {"a": {}})
    monkeypatch.setattr(study, "exported", lambda *_: {})
    monkeypatch.setattr(study, "study_of", lambda _: SimpleNamespace(worlds=[]))
    monkeypatch.setattr(study, "open_cells", lambda *_: iter(range(left)))
    study.run("collapse", tmp_path, only_show=True)
    assert said == [f"{left} runs that can be begun now have no row yet"] * bool(left)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_study_by_several_workers_is_the_study_by_one(workers, monkeypatch, tmp_path):
    """Plan, folder, known rows and what is kept arrive wherever the work is done."""
    called = []

    class Process:
        exitcode = 0

        def __init__(self, target, args, daemon):
            self.act = lambda: target(*args)

        def start(self):
            self.act()

        def is_alive(self):
            return False

        terminate = join = is_alive

    def carry_out(plan, out, known=(), keep=False, report=None):
        called.append((plan, out, tuple(known), keep))

    monkeypatch.setattr(study, "carry_out", carry_out)
    monkeypatch.setattr(study.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        study.multiprocessing, "get_context", lambda _: SimpleNamespace(Process=Process)
    )
    for keep in (False, True):
        called.clear()
        study._work("the plan", tmp_path, (Path("a"), Path("b")), keep, workers)
        assert called == [("the plan", tmp_path, (Path("a"), Path("b")), keep)] * workers


# ------------------------------------------------------------------------------- several runs


def test_runs_are_compared_with_the_first_under_their_letters(monkeypatch, tables, said):
    called = []
    suites = [Suite((evaluation(),), {}) for _ in range(3)]

    def compare(first, second, both):
        called.append((first, second, [suites.index(one) for one in both]))
        return []

    monkeypatch.setattr(evaluate, "compare", compare)
    monkeypatch.setattr(Suite, "__eq__", lambda self, other: self is other)
    evaluate._compare("ABC", suites, False)
    assert called == [("A", "B", [0, 1]), ("A", "C", [0, 2])]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (True, "held out of its training"),
        (False, "of other data than it was trained on"),
        (None, "perhaps seen in its training"),
    ],
)
def test_whose_episodes_are_played_is_said(own, words, monkeypatch, tables, said, tmp_path):
    """And every setting of a run is that of the run itself."""
    runs = {}

    def opened(path, data, device):
        k = len(runs)
        episodes = SimpleNamespace(
            path=f"data-{k}", provenance=SimpleNamespace(look="" if k else "walls")
        )
        runs[path] = SimpleNamespace(
            path=path,
            model=f"model-{k}",
            episodes=episodes,
            heldout=(1 + k, 5, 9),
            own_data=own,
            world_name="two-room",
            remark="",
            planning=f"planning-{k}",
            experiment={},
            changed=lambda planning: f"config-{k}",
            world=lambda n: f"world-{k} of {n}",
        )
        return runs[path]

    played = []

    def suite(*of, report, seeds, like):
        played.append((*of[:5], seeds, like))
        return Suite((evaluation(),), {})

    monkeypatch.setattr(evaluate, "open_run", opened)
    monkeypatch.setattr(evaluate, "evaluate_suite", suite)
    evaluate.run(Path("a"), (Path("b"),), episodes=30, together=12, seeds=2)
    (first, second), common = played, (5, 9)
    for k, (one, like) in enumerate(((first, False), (second, True))):
        expected = f"model-{k}", f"config-{k}", f"world-{k} of 12", runs[Path("ab"[k])].episodes
        assert one[:6] == (*expected, common, 2)
        assert (one[6] is not None) is like, "the second plays the pairs of the first"
    titles = list(tables)
    assert re.match(rf"A: a on 2 episodes {words}.* \(data-0, look walls\)$", titles[0])
    assert re.match(rf"B: b on 2 episodes {words}.* \(data-1, look published\)$", titles[1])


# ----------------------------------------------------------------------------------------- console


def test_numbers_stand_to_the_right_from_the_column_that_is_named(capsys):
    console.table(("name", "other", "value"), [("a", "b", 1), ("longer", "words", 100)], 2)
    head, *rows = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert head == "name    other  value"
    assert rows == ["a       b          1", "longer  words    100"]


def test_where_there_is_no_terminal_a_line_is_said_now_and_then(monkeypatch, capsys):
    from lewm.contracts import Progress

    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.Bars() as bars:
        for done, now in ((1, 101.0), (2, 111.0), (3, 112.0), (9, 113.0)):
            clock[0] = now
            bars.update(Progress("train", done, 9, f"loss {done}"))
    assert capsys.readouterr().err.splitlines() == ["train: 2/9 loss 2", "train: 9/9 loss 9"]
