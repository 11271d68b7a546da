"""Answers that are kept while they hold, asked again when they do not; refusals that leave the
other analyses alone."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from lewm import registry
from lewm.cli.main import main
from lewm.contracts import Progress, silent
from lewm.files import read_json, write_json
from lewm.runs import checkpoints
from lewm.runs.answers import ANALYSES, ARRAYS, RESULT, analyse, analyses, load_result
from lewm.runs.heads import load_head, save_head
from lewm.runs.results import Result
from lewm.runs.run import Unsupported, open_run

asked = []


@dataclass(frozen=True)
class Counted(Result):
    """What `Counting` found."""

    size: int
    episodes: int
    counts: np.ndarray

    name: ClassVar[str] = "counting"

    def tables(self):
        return {"what was counted": [{"episodes": self.episodes, "size": self.size}]}


@dataclass(frozen=True)
class Counting:
    """Remembers that it was asked."""

    size: int = 3
    seed: int = 0

    name: ClassVar[str] = "counting"
    question: ClassVar[str] = "How many frames are there?"
    result: ClassVar[type[Result]] = Counted

    def run(self, run, report=silent):
        asked.append(self)
        report(Progress("counting", 1, 1, "all of them"))
        return Counted(self.size, len(run.episodes), np.arange(self.size))


@dataclass(frozen=True)
class Refusing:
    """Cannot be asked of any run."""

    name: ClassVar[str] = "refusing"
    question: ClassVar[str] = "What can nobody know?"
    result: ClassVar[type[Result]] = Counted

    def run(self, run, report=silent):
        raise Unsupported("expected what nobody has, got nothing. Give up.")


@dataclass(frozen=True)
class Lacking:
    """Needs a package that is missing."""

    name: ClassVar[str] = "lacking"
    question: ClassVar[str] = "What would that package say?"
    result: ClassVar[type[Result]] = Counted

    def run(self, run, report=silent):
        raise ImportError("expected the package 'x'. Install it with: pip install x")


@pytest.fixture
def plugged(monkeypatch):
    """In place of the real analyses."""
    kinds = {kind.name: kind for kind in (Counting, Lacking, Refusing)}
    names, load = registry.names, registry.load
    monkeypatch.setattr(
        registry, "names", lambda kind: sorted(kinds) if kind == "analyses" else names(kind)
    )
    monkeypatch.setattr(
        registry, "load", lambda kind, name: kinds[name] if kind == "analyses" else load(kind, name)
    )
    asked.clear()


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture
def opened(run):
    found = open_run(run)
    yield found
    found.episodes.close()


def about(run):
    return json.loads((run / ANALYSES / "counting" / "result.json").read_text())["about"]


def test_an_answer_is_kept_while_it_holds(plugged, run, opened):
    first = analyse(opened, ["counting"])["counting"]
    again = analyse(opened, ["counting"])["counting"]
    assert len(asked) == 1
    assert again.to_json() == first.to_json()
    assert again.tables() == first.tables()
    np.testing.assert_array_equal(again.counts, first.counts)
    told = about(run)
    assert told["seconds"] >= 0
    assert told["settings"] == {"size": 3, "seed": 0}
    assert told["weights"] == checkpoints.digest_of_newest(run)
    assert told["data"]["episodes"] == len(opened.episodes) == 16


def test_it_is_asked_again_after_another_fit_and_for_another_way_to_plan(plugged, run, opened):
    model = opened.model
    for count in (1, 2):
        # other random weights
        head = registry.load("heads", "temporal")().build(model.latent_dim, model.spec.block_dim)
        save_head(run, "temporal", head, {})
        opened = dataclasses.replace(opened, heads={"temporal": load_head(run, "temporal", model)})
        for _ in range(2):
            analyse(opened, ["counting"])
        assert len(asked) == count
    slower = dataclasses.replace(opened, planning=dataclasses.replace(opened.planning, receding=3))
    analyse(slower, ["counting"])
    assert len(asked) == 3


def test_it_is_asked_again_for_other_settings_seeds_data_weights_and_on_demand(
    plugged, run, opened
):
    fewer = dataclasses.replace(opened, test_ids=list(opened.test_ids)[:-1])
    changes = [{}, {"settings": {"counting": {"size": 4}}}, {"seed": 5}, {}, {"again": True}]
    for count, change in enumerate(changes, 1):
        analyse(opened, ["counting"], **change)
        assert len(asked) == count, change
    analyse(fewer, ["counting"])
    assert len(asked) == 6
    weights = checkpoints.latest(run) / "weights.safetensors"
    model = checkpoints.load(run)
    model.get_parameter(next(iter(dict(model.named_parameters())))).data.add_(1)
    weights.unlink()
    checkpoints.save(run, 31, model)
    analyse(fewer, ["counting"])
    assert len(asked) == 7


def test_no_figure_of_an_older_answer_stays_beside_a_newer_one(plugged, run, opened):
    folder = run / ANALYSES / "counting"

    def draw(result, into):
        into.mkdir(parents=True, exist_ok=True)
        for suffix in (".svg", ".webp", ".still.webp"):
            (into / f"of {result.size}{suffix}").touch()

    for size in (3, 4):
        analyse(opened, ["counting"], settings={"counting": {"size": size}}, draw=draw)
        drawn = {path.name for path in folder.iterdir() if path.name.startswith("of")}
        assert drawn == {f"of {size}{suffix}" for suffix in (".svg", ".webp", ".still.webp")}


def test_nothing_of_an_older_answer_stays_beside_a_refusal(plugged, monkeypatch, run, opened):
    folder = run / ANALYSES / "counting"
    analyse(opened, ["counting"])
    (folder / "of 3.svg").touch()

    def refuse(self, run, report=silent):
        raise Unsupported("expected more, got less. Give up.")

    monkeypatch.setattr(Counting, "run", refuse)
    analyse(opened, ["counting"], again=True)
    assert [path.name for path in folder.iterdir()] == ["refusal.json"]


def test_a_damaged_answer_is_asked_for_anew(plugged, run, opened):
    analyse(opened, ["counting"])
    (run / ANALYSES / "counting" / ARRAYS).write_bytes(b"torn")
    analyse(opened, ["counting"])
    assert len(asked) == 2
    assert load_result(run / ANALYSES / "counting", Counted) is not None


def test_an_answer_of_another_version_is_asked_for_anew(plugged, run, opened):
    analyse(opened, ["counting"])
    file = run / ANALYSES / "counting" / RESULT
    told = read_json(file)
    told["values"]["number"] = told["values"].pop("size")
    write_json(file, told)
    assert analyse(opened, ["counting"])["counting"].size == 3
    assert len(asked) == 2
    assert read_json(file)["values"] == {"size": 3, "episodes": 16}


def test_what_cannot_be_asked_is_said_and_the_others_are_answered(plugged, run, opened):
    seen = []
    answers = analyse(opened, report=seen.append)
    assert isinstance(answers["counting"], Counted)
    assert isinstance(answers["refusing"], Unsupported)
    assert "pip install x" in str(answers["lacking"])
    refusal = json.loads((run / ANALYSES / "refusing" / "refusal.json").read_text())
    assert "Give up." in refusal["why"]
    assert not (run / ANALYSES / "refusing" / RESULT).exists()
    for name in answers:  # every bar begins and ends
        assert {progress.done for progress in seen if progress.stage == name} >= {0, 1}


def test_an_unknown_analysis_is_refused_with_the_nearest(plugged, run, opened):
    with pytest.raises(ValueError, match="Did you mean 'counting'"):
        analyse(opened, ["countin"])


def test_interrupted_it_keeps_what_is_complete(plugged, monkeypatch, run, opened):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Lacking, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        analyse(opened)
    assert load_result(run / ANALYSES / "counting", Counted) is not None
    assert not (run / ANALYSES / "lacking").exists()


def test_the_command_shows_tables_and_writes_the_numbers(plugged, run, tmp_path, capsys):
    assert main(["analyse", str(run), "--json", str(tmp_path / "told.json")]) == 0
    shown = capsys.readouterr().out
    assert "counting: what was counted" in shown
    assert "refusing is not possible for this run. expected what nobody has" in shown
    told = json.loads((tmp_path / "told.json").read_text())["analyses"]
    assert told["counting"]["values"] == {"size": 3, "episodes": 16}
    assert "Give up." in told["refusing"]["why"]


def test_an_analysis_that_was_named_and_is_not_possible_is_an_error(plugged, run, capsys):
    assert main(["analyse", str(run), "refusing", "counting"]) == 2
    said = capsys.readouterr()
    assert "expected what nobody has" in said.err
    assert "counting: what was counted" in said.out  # the other one was answered all the same


def test_every_analysis_can_be_made_and_has_a_question():
    for analysis in analyses(seed=3):
        assert analysis.question.endswith("?")
        assert getattr(analysis, "seed", 3) == 3
