"""What is read from a run's folder, and what is not believed."""

import json
import shutil

import pytest

from lewm.cli.main import main
from lewm.files import read_json, write_json
from lewm.report.record import record_of
from lewm.runs import checkpoints
from lewm.runs.answers import ANALYSES, RESULT, save_result
from tests.support.results import probing

SCORE = {"rate": 0.5, "low": 0.4, "high": 0.6, "episodes": 20}


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "project" / "run")


def evaluated(**changes):
    scores = {"agent": SCORE, "do-nothing": SCORE, "random": SCORE}
    counts = {"paper": scores, "strict": scores}
    protocol = {"offset": 25, "budget": 50, "across": False}
    return {"protocol": protocol, **counts, "others": {"block pose": counts}} | changes


def store(run, **about):
    save_result(run / ANALYSES / "probing", probing(), about)


def test_a_bare_run_says_what_was_not_asked(run):
    record = record_of(run)
    assert record.label == "project"
    assert {answer.why for answer in record.answers.values()} == {"Not asked yet."}
    assert record.outcomes == []
    assert record.story is None
    assert record.metrics[-1]["update"] == 30


def test_answers_count_if_they_are_about_the_newest_weights(run):
    store(run, weights=checkpoints.digest_of_newest(run), seconds=1.5)
    answer = record_of(run).answers["probing"]
    assert answer.result is not None
    assert answer.seconds == 1.5
    store(run, weights="others")
    answer = record_of(run).answers["probing"]
    assert answer.result is None
    assert "other weights" in answer.why


def test_an_answer_of_another_version_is_no_answer_and_says_how_to_ask_again(run, capsys):
    store(run, weights=checkpoints.digest_of_newest(run))
    file = run / ANALYSES / "probing" / RESULT
    told = read_json(file)
    told["values"]["place_of_old"] = told["values"].pop("place")
    write_json(file, told)
    answer = record_of(run).answers["probing"]
    assert answer.result is None
    assert "unknown field 'place_of_old' of ProbingResult" in answer.why
    assert f"lewm analyse {run} probing --again" in answer.why
    assert main(["report", str(run), "--out", str(run.parent / "report.html")]) == 0
    assert "place_of_old" in (run.parent / "report.html").read_text("utf-8")
    assert "without " in capsys.readouterr().out


def test_refusals_are_told(run):
    (run / ANALYSES / "surprise").mkdir(parents=True)
    (run / ANALYSES / "surprise" / "refusal.json").write_text(json.dumps({"why": "no world"}))
    assert record_of(run).answers["surprise"].why == "Not possible for this run: no world"


def test_success_is_found_in_the_run_or_beside_it(run):
    recipe = read_json(run / checkpoints.EXPERIMENT)["recipe"]
    write_json(run.parent / "result.json", {"recipe": recipe, "evaluations": [evaluated()]})
    (outcome,) = record_of(run).outcomes
    assert outcome.task == "goals 25 steps ahead, 50 allowed"
    assert list(outcome.counts) == [
        "paper's protocol",
        "strict",
        "block pose, paper's protocol",
        "block pose, strict",
    ]
    assert list(outcome.counts["strict"]) == ["agent", "random", "do nothing"]
    across = evaluated(protocol={"offset": 25, "budget": 100, "across": True})
    write_json(run / "evaluation.json", {"tasks": [evaluated(), across]})
    assert [outcome.task for outcome in record_of(run).outcomes][
        1
    ] == "goals in another room, 100 allowed"


def test_the_result_of_something_else_is_left_alone(run):
    write_json(run.parent / "result.json", {"recipe": "of another", "evaluations": [evaluated()]})
    assert record_of(run).outcomes == []


def test_a_damaged_evaluation_is_named(run):
    write_json(run / "evaluation.json", {"tasks": [{"protocol": {}}]})
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        record_of(run)
