"""One self-contained HTML page about one run, or several side by side: pictures and text are
inside, nothing is fetched.

It is made of what the run folders hold, as `record.record_of` gives it. Figures are drawn anew from
stored numbers and never copied from a folder, so that a stranger's run can put no markup into it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

import lewm
from lewm import registry
from lewm.files import legible
from lewm.report import rivals, sections
from lewm.report.animation import Clip
from lewm.report.canvas import THEME, Panel
from lewm.report.charts import loss_panels, success_panel
from lewm.report.record import EVALUATION, Answer, Record
from lewm.report.rivals import Study
from lewm.report.words import (
    cell,
    data_url,
    duration,
    low_to_high,
    number,
    percent,
    with_interval,
)
from lewm.runs.results import legible_result

__all__ = ["render"]

MOST_ROWS, MOST_CLIPS = 60, 6
"""Of a table and of attempts, as many are shown; several runs share the latter."""

STAGES = {
    "collect": "collect episodes",
    "train": "train the world model",
    "fit": "fit what the planner asks for",
    "evaluate": "evaluate agent and floors",
    "analyse": "analyse the latents and the plans",
    "report": "draw this report",
    "total": "everything",
}


@dataclass(frozen=True)
class _Section:
    """An analysis on the page. `rows` are figures: one row for each, with a cell per run; None
    where a run has no such."""

    name: str
    title: str
    question: str
    told: Sequence[tuple[str, str]] = ()
    rows: Sequence[Sequence[tuple[str, Panel | None]]] = ()
    tables: Sequence[tuple[str, Sequence[Mapping[str, Any]], int]] = ()
    commands: Sequence[str] = ()
    notes: Sequence[str] = ()
    missing: Sequence[tuple[str, str]] = ()


# --------------------------------------------------------------------------------------------- page


def render(
    records: Sequence[Record], command: str, study: Study | None = None, lab: str | None = None
) -> str:
    """Write the page.

    Args:
        records: one or more, as `record.record_of` gives them.
        command: that made the page.
        study: methods side by side, in a section of its own.
        lab: name of the page of `lewm lab` that lies beside this one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "percent": percent,
        "duration": duration,
        "interval": low_to_high,
        "webp": data_url,
        "number": number,
        "cell": cell,
    }
    records = [legible_result(record) for record in _labelled(records)]  # before they are drawn
    story = records[0].story if len(records) == 1 else None
    clips = [_clips(record, max(1, MOST_CLIPS // len(records))) for record in records]
    page = templates.get_template("page.html.j2").render(
        records=records,
        story=story,
        command=command,
        theme=THEME,
        sections=[_section(name, records) for name in sections.ordered(records[0].answers)],
        clips=list(zip_longest(*clips)),
        successes=_success_rows(records),
        losses=_rows([loss_panels(record.metrics) for record in records], records),
        loss_tables=[
            (record.label, _loss_table(record.metrics), len(record.metrics))
            for record in records
            if record.metrics
        ],
        facts=[_facts(record) for record in records],
        comparison=_comparison(records),
        straight_does=story and _compared(story["floors"]["straight_line"], story["success"]),
        places=any(clip.places for some in clips for clip in some),
        searches=any(clip.searches for some in clips for clip in some),
        studies=[] if study is None else _studied(study),
        stages=STAGES,
        lab=lab,
        next_steps=_next_steps(records[0]),
        evaluation=lambda record: shlex.quote(str(record.path / EVALUATION)),
        version=lewm.__version__,
    )
    return legible(page)  # paths and the command too; the templates hold nothing that it changes


def _labelled(records: Sequence[Record]) -> list[Record]:
    """With labels that differ: where names of folders do not, whole paths."""
    labels = [record.label for record in records]
    return [
        replace(r, label=str(r.path) if labels.count(r.label) > 1 else r.label) for r in records
    ]


def _section(name: str, records: Sequence[Record]) -> _Section:
    answers, drawn = [], []
    for record in records:
        answer, panels = _drawn(record.answers[name])
        answers.append(answer)
        drawn.append(panels)
    tables: list[tuple[str, Sequence[Mapping[str, Any]], int]] = []
    for record, answer in zip(records, answers, strict=True):
        if answer.result is None:
            continue
        whose = f"{record.label}: " if len(records) > 1 else ""
        of = answer.result.tables()
        if len(records) == 1:
            of |= sections.rows(answer.result)
        tables += [
            (whose + caption, rows[:MOST_ROWS], len(rows)) for caption, rows in of.items() if rows
        ]
    return _Section(
        name=name,
        title=sections.title(name),
        question=registry.load("analyses", name).question,
        told=[
            (r.label, sections.tell(a.result))
            for r, a in zip(records, answers, strict=True)
            if a.result is not None
        ],
        rows=_rows(drawn, records),
        tables=tables,
        notes=sections.notes(name, [a.result for a in answers if a.result]),
        commands=[f"lewm analyse {record.quoted} {name}" for record in records],
        missing=[
            (r.label, a.why) for r, a in zip(records, answers, strict=True) if a.result is None
        ],
    )


def _drawn(answer: Answer) -> tuple[Answer, list[Panel]]:
    """An answer and its panels. One that cannot be said or drawn, because its file was changed, is
    missing from its section, and the rest of the page stands."""
    if answer.result is None:
        return answer, []
    try:
        sections.tell(answer.result)
        sections.rows(answer.result)
        return answer, sections.draw(answer.result)
    except ValueError as error:
        return replace(answer, result=None, why=str(error)), []


def _studied(study: Study) -> list[dict[str, Any]]:
    """Methods side by side, by world: sentences, figures and the table."""
    return [
        {
            "world": world,
            "told": rivals.result_in_words(study, world),
            "rows": [[("", panel)] for panel in rivals.figures(study, world)],
            "table": rivals.table(study, world),
            "objections": [about for about in study.methods.values() if about.get("objection")],
        }
        for world in study.worlds
    ]


def _rows(
    drawn: Sequence[Sequence[Panel]], records: Sequence[Record]
) -> list[list[tuple[str, Panel | None]]]:
    """Panels of each run -> rows of panels of one kind, a cell per run. Of titles the words count,
    not the numbers."""
    by_kind: list[dict[tuple[str, int], Panel]] = []
    for panels in drawn:
        kinds: dict[tuple[str, int], Panel] = {}
        for panel in panels:
            words = re.sub(r"\d+", "", panel.title)
            kinds[words, sum(known == words for known, _ in kinds)] = panel
        by_kind.append(kinds)
    rows = dict.fromkeys(kind for kinds in by_kind for kind in kinds)
    return [
        [(r.label, of.get(kind)) for r, of in zip(records, by_kind, strict=True)] for kind in rows
    ]


def _success_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Per task its figures, a row for each way of counting, and tables of their numbers."""
    tasks = dict.fromkeys(outcome.task for record in records for outcome in record.outcomes)
    found = []
    for task in tasks:
        of = [next((o for o in record.outcomes if o.task == task), None) for record in records]
        drawn = [
            [success_panel(title, scores) for title, scores in o.counts.items()] if o else []
            for o in of
        ]
        tables = [(record.label, o.counts) for record, o in zip(records, of, strict=True) if o]
        found.append({"task": task, "rows": _rows(drawn, records), "tables": tables})
    return found


def _clips(record: Record, most: int) -> list[Clip]:
    found: list[Clip] = []
    for answer in record.answers.values():
        with suppress(ValueError):  # its section says why
            found += sections.clips(answer.result, most) if answer.result else []
    return found


def _facts(record: Record) -> dict[str, str]:
    """What a run is, in a column of a table."""
    experiment, data = record.experiment, record.experiment.get("data") or {}
    provenance, training = data.get("provenance") or {}, experiment.get("training") or {}
    model = experiment.get("model") or {}
    spec, config = model.get("spec") or {}, model.get("config") or {}
    split, last = experiment.get("split") or {}, (record.metrics or [{}])[-1]
    told: dict[str, Any] = {
        "world": provenance.get("world") or experiment.get("world"),
        "look": provenance.get("look"),
        "recipe": experiment.get("recipe"),
        "model": model.get("model"),
        "picture, px": spec.get("image_size"),
        "latent numbers": config.get("latent_dim"),
        "updates": last.get("update", training.get("updates")),
        "seed": training.get("seed"),
        "episodes trained on": len(split["train"]) if "train" in split else None,
        "episodes held out": len(split["heldout"]) if "heldout" in split else None,
        "training, s": round(last["seconds"]) if "seconds" in last else None,
        "alarm": last.get("alarm"),
    }
    return {name: cell(value) for name, value in told.items() if value not in (None, "")}


def _comparison(records: Sequence[Record]) -> list[dict[str, str]]:
    """Headline numbers, a row for each and a column per run; of what the runs are, the names and
    that in which they differ."""
    facts = [_facts(record) for record in records]
    telling = {
        name for fact in facts for name in fact if len({other.get(name) for other in facts}) > 1
    } | {"world", "recipe"}
    columns: list[dict[str, str]] = []
    for record, fact in zip(records, facts, strict=True):
        column = {name: value for name, value in fact.items() if name in telling}
        for outcome in record.outcomes:
            for title, scores in outcome.counts.items():
                agent, random = scores["agent"], scores.get("random")
                beside = f"; random {percent(random['rate'])}" if random else ""
                what = title if title in outcome.task else f"{outcome.task}: {title}"
                interval = agent["low"], agent["high"]
                own = with_interval(agent["rate"], interval, percent)
                column[f"reached, {what}"] = own + beside
        for name in sections.ordered(record.answers):
            result = record.answers[name].result
            with suppress(ValueError):  # its section says why
                column |= sections.headlines(result) if result else {}
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        {"": name} | {r.label: c.get(name, "-") for r, c in zip(records, columns, strict=True)}
        for name in names
    ]


def _compared(rival: Mapping[str, float], agent: Mapping[str, float]) -> str:
    """How a rival does beside the agent: "as well" unless each of them lies outside the interval of
    the other."""
    if rival["low"] > agent["rate"] and rival["rate"] > agent["high"]:
        return "better"
    if rival["high"] < agent["rate"] and rival["rate"] < agent["low"]:
        return "less well"
    return "as well"


def _next_steps(record: Record) -> list[tuple[str, str]]:
    """What to do with what is now in the folder, and how to go beyond it: purpose and command."""
    run, story = record.quoted, record.story
    steps = [
        ("run every analysis, the decoder included", f"lewm analyse {run}"),
        ("watch it plan", f"lewm plan {run} --out plan.gif"),
        (
            "measure it on longer ways too",
            f"lewm evaluate {run} --full --json {shlex.quote(str(record.path / EVALUATION))}",
        ),
        ("draw this page anew", f"lewm report {run} --out report.html"),
    ]
    if story is not None:
        settings = story["settings"]
        collect = f"--episodes 2000 --image-size {settings['image_size']} --seed 1"
        steps[1] = (
            "watch it look for the way to the other room",
            f"lewm plan {run} --across --out plan.gif",
        )
        steps += [
            ("collect more episodes", f"lewm collect {settings['world']} --out more.h5 {collect}"),
            (
                "train longer on them",
                f"lewm train {story['recipe']} --data more.h5 --out longer --training.updates 2000",
            ),
            ("fit the small networks of its planner to the longer run", "lewm fit longer"),
            ("compare the speed of our implementations with plain ones", "lewm bench"),
            ("see what this machine can do, and what is missing", "lewm doctor"),
        ]
    return steps


def _loss_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Of very many logged updates as many as a table shows, evenly spaced."""
    columns = ("update", "prediction", "sigreg", "latent_std", "effective_rank", "straightness")
    known = [name for name in columns if any(name in row for row in rows)]
    shown = np.unique(np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).round().astype(int))
    return [
        {name.replace("_", " "): number(rows[k][name]) if name in rows[k] else "" for name in known}
        for k in shown
    ]
