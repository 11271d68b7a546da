"""`lewm evaluate`: does the agent reach its goals, and which of several does so more often?"""

import string
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from lewm import registry
from lewm.cli import console
from lewm.contracts import Batched, Progress
from lewm.evaluation.comparison import (
    COMPARISON_COLUMNS,
    SPREAD_COLUMNS,
    Suite,
    compare,
    evaluate_suite,
    spread,
)
from lewm.evaluation.tables import COLUMNS, markdown_table
from lewm.evaluation.tasks import named_tasks, standard_tasks
from lewm.files import write_json
from lewm.planning.changes import PlanningChanges
from lewm.runs.checkpoints import budget_in_words
from lewm.runs.run import Run, open_run

ORIGINS = {
    True: "held out of its training",
    False: "of other data than it was trained on",
    None: "perhaps seen in its training, origin unknown",
}

TOGETHER, TOGETHER_LOOPED = 128, 16
"""Environments stepped and planned side by side, in a world with a batched form and in one that
opens a simulator for each."""


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm evaluate")


def run(
    run: Positional[Path],
    others: Positional[tuple[Path, ...]] = (),
    data: Path | None = None,
    episodes: int = 200,
    seed: int = 0,
    seeds: int = 1,
    full: bool = False,
    task: str | None = None,
    pool: bool = False,
    planning: OmitArgPrefixes[PlanningChanges] = PlanningChanges(),  # noqa: B008  frozen
    together: int | None = None,
    device: str = "auto",
    markdown: bool = False,
    json: Path | None = None,
) -> None:
    """Measure how often a trained model reaches its goals on episodes it never saw, and how often
    one gets there without it.

    Several runs play the same pairs, of episodes that none of them was trained on, and are compared
    with the first one.

    Args:
        run: run folder.
        others: more of them.
        data: episode file; by default the one the (first) run was trained on, of which only
            held-out episodes are used.
        episodes: start/goal pairs; the paper takes 50, and its intervals are wide.
        seed: of the pairs, the search and the random floor.
        seeds: play everything as often, with seed, seed + 1, ..., and report each and all of them
            together.
        full: add goals 50, 75 and 100 steps ahead, and goals in another room.
        task: one task alone, by its name: offset-25, offset-50, offset-75, offset-100, other-room,
            anywhere (the world draws starts and goals wherever they may be, 100 steps allowed), or
            anywhere-other-room.
        pool: the runs are one recipe's, of several training seeds: each plays pairs of its own
            data, and their mean is shown.
        planning: changes to how the recipe of each run plans.
        together: environments stepped and planned side by side; changes the speed and nothing else.
            By default what suits the world.
        device: cpu, cuda, ... or auto.
        markdown: print Markdown tables.
        json: write every number there, each attempt included.
    """
    if seeds < 1 or (together is not None and together < 1):
        raise ValueError(
            f"expected at least 1 of --seeds and of --together, got {seeds} and {together}."
        )
    paths = (run, *others)
    if len(paths) > len(string.ascii_uppercase):
        raise ValueError(
            f"expected at most {len(string.ascii_uppercase)} runs, got {len(paths)}. Evaluate "
            "them in turns."
        )
    same_pairs = len(paths) > 1 and not pool
    opened = [open_run(run, data, device)]
    opened += [
        open_run(path, opened[0].episodes.path if same_pairs else data, device) for path in others
    ]
    heldout = (
        [_held_out_of_all(opened)] * len(opened)
        if same_pairs
        else [each.heldout for each in opened]
    )
    if (
        pool
        and len(worlds := {(each.world_name, each.episodes.provenance.look) for each in opened}) > 1
    ):
        got = ", ".join(sorted(f"{world} ({look or 'published'})" for world, look in worlds))
        raise ValueError(
            f"expected --pool with runs of one recipe, got {got}. Evaluate them apart."
        )
    configs = [each.changed(planning) for each in opened]
    if task is not None and full:
        raise ValueError(f"expected --full or one --task, got --task {task} too. Leave one out.")
    protocols = standard_tasks(episodes, seed)[: None if full else 1]
    if task is not None:
        tasks = named_tasks(episodes, seed)
        protocols = (tasks[registry.choose("task", task, tasks)],)
    labels = string.ascii_uppercase[: len(paths)] if others else [""]
    for each, config in zip(opened, configs, strict=True):
        if each.remark and config == each.planning:
            console.say(each.remark)
    suites: list[Suite] = []
    with console.Bars() as bars:
        for label, each, config, unseen in zip(labels, opened, configs, heldout, strict=True):

            def report(progress: Progress, who: str = f"{label}: " if label else "") -> None:
                bars.update(replace(progress, stage=who + progress.stage))

            like = suites[0] if same_pairs and suites else None
            world = each.world(min(together or _suitable(each), episodes))
            played = (each.model, config, world, each.episodes, unseen, protocols)
            suites.append(evaluate_suite(*played, report=report, seeds=seeds, like=like))
            if not suites[-1].evaluations:
                raise ValueError(" ".join(dict.fromkeys(suites[-1].omitted.values())))

    told: list[dict[str, Any]] = []
    for label, each, config, unseen, suite in zip(
        labels, opened, configs, heldout, suites, strict=True
    ):
        look = each.episodes.provenance.look or "published"
        budget = budget_in_words(each.experiment)
        named = f"{each.path} ({budget})" if budget else str(each.path)
        where = (
            f"{named} on {len(unseen)} episodes {ORIGINS[each.own_data]} ({each.episodes.path}, "
            f"look {look})"
        )
        _show(
            COLUMNS,
            suite.rows(),
            f"{label}: {where}" if label else where,
            suite.remarks(),
            markdown,
        )
        about = {
            "run": str(each.path),
            "budget": each.experiment.get("budget"),
            "data": str(each.episodes.path),
            "world": each.world_name,
            "look": look,
        }
        told.append(
            {**about, "own_data": each.own_data, "settings": repr(config), **suite.to_json()}
        )
    summary: dict[str, Any] = {}
    if same_pairs:
        summary["comparisons"] = _compare(labels, suites, markdown)
    elif others:
        spreads = spread(suites)
        _show(
            SPREAD_COLUMNS,
            [each.row() for each in spreads],
            "mean over the runs (least to most)",
            (),
            markdown,
        )
        summary["pool"] = [asdict(each) for each in spreads]
    if json:
        write_json(json, {"runs": told, **summary} if others else told[0])


def _held_out_of_all(opened: Sequence[Run]) -> tuple[int, ...]:
    """Episodes of their file that no run was trained on."""
    common = tuple(sorted(set.intersection(*(set(each.heldout) for each in opened))))
    if not common:
        raise ValueError(
            f"{opened[0].episodes.path}: expected episodes that none of the runs was trained on, "
            "got none. Pass other episodes of this world with --data FILE, or evaluate each run "
            "on its own with --pool."
        )
    return common


def _suitable(run: Run) -> int:
    """How many environments to step together: the simulators of a world without a batched form need
    memory."""
    name = run.world_name
    batched = name in registry.names("worlds") and isinstance(
        registry.load("worlds", name), Batched
    )
    return TOGETHER if batched else TOGETHER_LOOPED


def _compare(
    labels: Sequence[str], suites: Sequence[Suite], markdown: bool
) -> list[dict[str, Any]]:
    """Show every run beside the first one."""
    found = [
        comparison
        for label, suite in zip(labels[1:], suites[1:], strict=True)
        for comparison in compare(labels[0], label, (suites[0], suite))
    ]
    rows = [comparison.row() for comparison in found]
    _show(COMPARISON_COLUMNS, rows, "on the same strict pairs", list(map(str, found)), markdown)
    return [comparison.to_json() for comparison in found]


def _show(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    remarks: Sequence[str],
    as_markdown: bool,
) -> None:
    if as_markdown:
        console.say("\n\n".join([title, markdown_table(columns, rows), *remarks]))
    else:
        console.table(columns, rows, 2, title)
        for remark in remarks:
            console.say(remark)
