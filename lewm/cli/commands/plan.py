"""`lewm plan`: watch a trained model plan its way."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from lewm.analyses.probes.ridge import steady_probe
from lewm.analyses.probes.targets import readings_of
from lewm.cli import console
from lewm.contracts import Progress, World, WorldSpec
from lewm.evaluation.recordings import Recording, record_episodes
from lewm.evaluation.tasks import Pairs, Task, draw_pairs, place
from lewm.files import write_json
from lewm.planning.agent import Agent
from lewm.planning.changes import PlanningChanges
from lewm.planning.config import PlanningConfig
from lewm.planning.realtime import COLUMNS, Drive, drive, latencies
from lewm.registry import choose
from lewm.report.animation import FORMATS, View, draw_episode, save_animation
from lewm.runs.run import Run, open_run


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm plan")


def run(
    run: Positional[Path],
    out: Path | None = None,
    episodes: int = 1,
    seed: int = 0,
    offset: int = 25,
    across: bool = False,
    realtime: float | None = None,
    data: Path | None = None,
    planning: OmitArgPrefixes[PlanningChanges] = PlanningChanges(),  # noqa: B008  frozen
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Draw planned episodes as an animation: what the agent sees, where it imagines its plans to
    end, and what it does.

    Args:
        run: run folder.
        out: animation to write: .gif, .webp, or .mp4 (needs lewm[video]). By default plan.gif; in
            real time none, because what is kept for it takes its share of the time to plan.
        episodes: how many, one after the other.
        seed: of the start/goal pairs and the search.
        offset: env steps between start and goal in the data; twice as many are allowed.
        across: goals in another room instead, in 100 steps.
        realtime: env steps per second at which the world goes on, whether the plan is ready or not;
            20 is usual. Shows how late actions were, and which share of the plans had to be cut
            short.
        data: episode file; by default the one the run was trained on, of which only held-out
            episodes are used.
        planning: changes to how the run's recipe plans.
        device: cpu, cuda, ... or auto.
        json: write what happened there.
    """
    if out is None and realtime is None:
        out = Path("plan.gif")
    if out is not None:
        choose("animation format", out.suffix.lower(), FORMATS)
    opened = open_run(run, data, device)
    config = opened.changed(planning)
    if opened.remark and config == opened.planning:
        console.say(opened.remark)
    protocol = Task.to_other_room(episodes, seed) if across else Task.along(offset, episodes, seed)
    world = opened.world(episodes if realtime is None else 1)
    pairs = draw_pairs(opened.episodes, opened.heldout, world, protocol)
    pairs = pairs[pairs.strict][:episodes]  # what begins solved has nothing to show
    drives: list[Drive] = []
    if realtime is None:
        recordings = record_episodes(opened.model, config, world, opened.episodes, pairs, protocol)
    else:
        drives, recordings = _drive(
            opened, config, world, pairs, protocol, realtime, drawn=out is not None
        )
    if out is not None:
        _animate(recordings, protocol.budget, _view(opened, world.spec), out)
    attempts = [_told(each) for each in drives or recordings]
    for number, (attempt, goal) in enumerate(zip(attempts, pairs.goals, strict=True), 1):
        step = attempt["success_step"]
        ending = "goal not reached" if step is None else f"goal reached after {step} steps"
        console.say(f"episode {number}: {ending}, {attempt['plans']} plans")
        attempt["goal"] = goal.tolist()
    summary: dict[str, Any] = {"run": str(run), "task": protocol.name, "attempts": attempts}
    if realtime is not None:
        summary["realtime"] = _show(drives, realtime)
    if out is not None:
        console.say(str(out.resolve()))
        summary["animation"] = str(out)
    if json:
        write_json(json, summary)


def _drive(
    opened: Run,
    config: PlanningConfig,
    world: World,
    pairs: Pairs,
    protocol: Task,
    rate_hz: float,
    drawn: bool,
) -> tuple[list[Drive], list[Recording]]:
    """Attempts in real time, one after the other, and where they are to be drawn, their pictures,
    made afterwards."""
    agent = Agent(opened.model, config, world.spec, [protocol.seed], trace=drawn)
    drives, recordings = [], []
    with console.Bars() as bars:
        for number, pair in enumerate(pairs.portions(1), 1):
            place(world, pair.starts, pair.goals)
            agent.reset(pair.seeds(1, protocol.seed))
            goal_pixels = opened.episodes.rows("pixels", pair.goal_rows)
            drives.append(drive(agent, world, goal_pixels, rate_hz, protocol.budget))
            if drawn:
                d, goal = drives[-1], pair.goals[0]
                pixels, replans = world.render(d.states), tuple(agent.trace)
                recordings.append(
                    Recording(
                        pixels, goal_pixels[0], d.states, goal, d.actions, d.success_step, replans
                    )
                )
            bars.update(Progress("drive", number, len(pairs)))
    return drives, recordings


def _told(attempt: Drive | Recording) -> dict[str, Any]:
    about = {"start": attempt.states[0].tolist(), "success_step": attempt.success_step}
    if isinstance(attempt, Drive):
        return {**about, "plans": attempt.plans, "cut_short": attempt.cut_short}
    return {**about, "plans": len(attempt.replans)}


def _show(drives: Sequence[Drive], rate_hz: float) -> dict[str, Any]:
    """Print how late actions were, and return it."""
    found = latencies(drives)
    steps, plans, cut_short = (
        found["all"].steps,
        found["replanning"].steps,
        sum(d.cut_short for d in drives),
    )
    achieved = steps / sum(d.seconds for d in drives)
    rows = [latency.row(name) for name, latency in found.items()]
    console.table(
        COLUMNS,
        rows,
        title=f"{rate_hz:g} steps per second, {1e3 / rate_hz:g} ms each; {achieved:.4g} achieved",
    )
    reached = sum(d.success_step is not None for d in drives)
    console.say(
        f"{reached} of {len(drives)} goals reached; {plans} plans, {cut_short} of them cut short "
        "by their deadline"
    )
    told = {
        name: {**asdict(latency), "missed_share": latency.missed_share}
        for name, latency in found.items()
    }
    return {
        "rate_hz": rate_hz,
        "achieved_hz": achieved,
        "cut_short": cut_short,
        "successes": reached,
        "latency": told,
    }


def _animate(recordings: Sequence[Recording], budget: int, view: View | None, out: Path) -> None:
    frames = []
    with console.Bars() as bars:
        for number, recording in enumerate(recordings, 1):
            frames += draw_episode(recording, budget, view)
            bars.update(Progress("draw", number, len(recordings)))
    save_animation(frames, out)


def _view(opened: Run, spec: WorldSpec) -> View | None:
    """How imagined latents are drawn into the picture, where the state begins with a place in it:
    through a linear probe."""
    if spec.picture_extent is None or spec.tolerance is None:
        return None
    probe = steady_probe(
        opened.model, opened.episodes, opened.fit_ids, readings_of(opened.episodes)
    )
    return View(probe.predict, spec.picture_extent, spec.tolerance)
