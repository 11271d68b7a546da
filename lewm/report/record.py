"""What a run's folder holds for people: what training recorded, what analyses answered, what
evaluation measured beside it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewm import registry
from lewm.files import read_json
from lewm.runs import checkpoints
from lewm.runs.answers import ANALYSES, REFUSAL, Outdated, load_result
from lewm.runs.results import Result

__all__ = ["EVALUATION", "Answer", "Outcome", "Record", "record_of"]


EVALUATION, RESULT = "evaluation.json", "result.json"

FLOOR_NAMES = {"straight_line": "straight line*", "random": "random", "do_nothing": "do nothing"}
COUNTS = {"paper": "paper's protocol", "strict": "strict"}


@dataclass(frozen=True)
class Answer:
    """What an analysis said of a run: a result, or why there is none."""

    result: Result | None = None
    why: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How often goals of one task were reached.

    Attributes:
        task: in a few words.
        counts: way of counting -> policy -> `rate`, `low`, `high` and `episodes`, the agent first.
    """

    task: str
    counts: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Record:
    """What a run's folder holds for people.

    Attributes:
        path: of the folder, as commands name it.
        experiment, metrics: what training recorded.
        answers: of every analysis there is, by name.
        outcomes: of evaluations, the paper's task first; empty where none is known.
        story: of a quickstart: its result.json.
        label: what tells this run from the others of a page; it names a time budget, where the run
            had one.
    """

    path: Path
    experiment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    answers: Mapping[str, Answer]
    outcomes: Sequence[Outcome] = ()
    story: Mapping[str, Any] | None = None
    label: str = ""

    @property
    def quoted(self) -> str:
        return shlex.quote(str(self.path))


def record_of(run: Path | str, story: Mapping[str, Any] | None = None) -> Record:
    """Read what is in a run's folder, and the success that was measured beside it.

    Success is taken from `evaluation.json` in the run, which `lewm evaluate RUN --json` writes, or
    from the result.json of the quickstart or reproduction that made the run.

    Args:
        story: what a quickstart is about to write to result.json.

    Raises:
        ValueError: not a run, or damaged; the file is named.
    """
    run = Path(run)
    experiment = checkpoints.experiment(run)
    told, beside = story, run.resolve().parent / RESULT
    if told is None and run.resolve().name == "run" and beside.exists():
        told = read_json(beside)
        # of something else that happens to lie there
        if told.get("recipe") != experiment.get("recipe"):
            told = None
    is_story = told is not None and "published" in told
    try:
        if (run / EVALUATION).exists():
            outcomes = [_outcome(task) for task in read_json(run / EVALUATION)["tasks"]]
        elif told is not None and is_story:
            outcomes = _outcomes_of_story(told)
        else:
            outcomes = (
                [_outcome(task) for task in told.get("evaluations", ())] if told is not None else []
            )
    except (KeyError, TypeError, AttributeError) as error:  # a file may hold anything
        source = run / EVALUATION if (run / EVALUATION).exists() else beside
        raise ValueError(
            f"{source} is damaged: expected what lewm writes there, got {error!r}. Delete it."
        ) from None
    answers = {name: _answer(run, name) for name in registry.names("analyses")}
    metrics = checkpoints.metrics(run)
    budget = checkpoints.budget_in_words(experiment)
    label = f"{_named(run)} ({budget})" if budget else _named(run)
    return Record(run, experiment, metrics, answers, outcomes, told if is_story else None, label)


def _answer(run: Path, name: str) -> Answer:
    folder = run / ANALYSES / name
    try:
        found = load_result(folder, registry.load("analyses", name).result)
    except Outdated as error:
        return Answer(why=str(error))
    if found is None:
        if (folder / REFUSAL).exists():
            return Answer(
                why=f"Not possible for this run: {read_json(folder / REFUSAL).get('why', '')}"
            )
        return Answer(why="Not asked yet.")
    result, about = found
    if about.get("weights") != checkpoints.digest_of_newest(run):
        return Answer(why="The answer on file is of other weights than the newest. Ask again.")
    return Answer(result, seconds=about.get("seconds"))


def _named(run: Path) -> str:
    path = run.resolve()
    return path.parent.name if path.name == "run" and path.parent.name else path.name


def _outcome(task: Mapping[str, Any]) -> Outcome:
    """Of one task of an evaluation."""
    protocol = task["protocol"]
    ahead = (
        "goals in another room" if protocol["across"] else f"goals {protocol['offset']} steps ahead"
    )
    if protocol.get("anywhere"):
        ahead = "starts and goals anywhere" + ", in two rooms" * protocol["across"]
    counts = {title: _ordered(task[key]) for key, title in COUNTS.items()}
    for criterion, scores in task["others"].items():
        counts |= {f"{criterion}, {title}": _ordered(scores[key]) for key, title in COUNTS.items()}
    return Outcome(f"{ahead}, {protocol['budget']} allowed", counts)


def _outcomes_of_story(story: Mapping[str, Any]) -> list[Outcome]:
    protocol, other = story["protocol"], story["other_room"]
    found = [
        Outcome(
            f"goals {protocol['offset']} steps ahead, {protocol['budget']} allowed",
            {
                "paper's protocol": _ordered({"agent": story["success"], **story["floors"]}),
                "strict": _ordered(
                    {"agent": story["strict"]}
                    | {k: floor["strict"] for k, floor in story["floors"].items()}
                ),
            },
        )
    ]
    if other is not None:
        task = f"goals in the other room, {other['protocol']['budget']} allowed"
        found.append(
            Outcome(
                task,
                {"goals in the other room": _ordered({"agent": other["agent"], **other["floors"]})},
            )
        )
    return found


def _ordered(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The agent, then the floors under the names that people read."""
    of = {name.replace("-", "_"): score for name, score in scores.items()}
    return {"agent": of["agent"]} | {
        label: of[name] for name, label in FLOOR_NAMES.items() if name in of
    }
