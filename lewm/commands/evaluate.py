"""`lewm evaluate`: does the agent reach its goals?"""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm import console
from lewm.checkpoints import write_json
from lewm.evaluation import COLUMNS, evaluate_suite
from lewm.runs import PlanningChanges, open_run
from lewm.tasks import standard_protocols

ORIGINS = {
    True: "held out of its training",
    False: "of other data than it was trained on",
    None: "perhaps seen in its training, origin unknown",
}


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm evaluate")


def run(
    run: Positional[Path],
    data: Path | None = None,
    episodes: int = 200,
    seed: int = 0,
    full: bool = False,
    planning: PlanningChanges = PlanningChanges(),  # noqa: B008  frozen
    together: int = 128,
    device: str = "auto",
    markdown: bool = False,
    json: Path | None = None,
) -> None:
    """Measure how often a trained model reaches its goals on episodes it never saw, and how often one gets there without it.

    Args:
        run: run folder.
        data: episode file; by default the one the run was trained on, of which only held-out episodes are used.
        episodes: start/goal pairs; the paper takes 50, and its intervals are wide.
        seed: of the pairs, the search and the random floor.
        full: add goals 50 and 75 steps ahead, and goals in another room.
        planning: changes to how the run's recipe plans.
        together: environments stepped and planned side by side; changes the speed and nothing else.
        device: cpu, cuda, ... or auto.
        markdown: print a Markdown table.
        json: write every number there, each attempt included.
    """
    opened = open_run(run, data, device)
    config = planning.apply(opened.planning)
    protocols = standard_protocols(episodes, seed)[: None if full else 1]
    with console.Bars() as bars:
        world = opened.world(min(together, episodes))
        suite = evaluate_suite(opened.model, config, world, opened.episodes, opened.heldout, protocols, progress=bars.update)
    if not suite.evaluations:
        raise ValueError(" ".join(suite.omitted.values()))
    title = f"{run} on {len(opened.heldout)} episodes {ORIGINS[opened.own_data]} ({opened.episodes.path})"
    if markdown:
        console.say(f"{title}\n\n{suite.markdown()}")
    else:
        console.table(COLUMNS, suite.rows(), 2, title)
        for remark in suite.remarks():
            console.say(remark)
    if json:
        about = {"run": str(run), "data": str(opened.episodes.path), "own_data": opened.own_data, "settings": repr(config)}
        write_json(json, {**about, **suite.to_json()})
