"""`lewm plan`: watch a trained model plan its way."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm import console
from lewm.analyses.probing import Probe, Probing
from lewm.animation import FORMATS, View, draw_episode, save_animation
from lewm.checkpoints import write_json
from lewm.contracts import EnvSpec
from lewm.evaluation import record_episodes
from lewm.registry import choose
from lewm.runs import PlanningChanges, Run, open_run
from lewm.tasks import Protocol, draw_pairs


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm plan")


def run(
    run: Positional[Path],
    out: Path = Path("plan.gif"),
    episodes: int = 1,
    seed: int = 0,
    offset: int = 25,
    across: bool = False,
    data: Path | None = None,
    planning: PlanningChanges = PlanningChanges(),  # noqa: B008  frozen
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Draw planned episodes as an animation: what the agent sees, where it imagines its plans to end, and what it does.

    Args:
        run: run folder.
        out: animation to write: .gif, .webp, or .mp4 (needs lewm[video]).
        episodes: how many, one after the other.
        seed: of the start/goal pairs and the search.
        offset: env steps between start and goal in the data; twice as many are allowed.
        across: goals in another room instead, in 100 steps.
        data: episode file; by default the one the run was trained on, of which only held-out episodes are used.
        planning: changes to how the run's recipe plans.
        device: cpu, cuda, ... or auto.
        json: write what happened there.
    """
    choose("animation format", out.suffix.lower(), FORMATS)
    opened = open_run(run, data, device)
    config = planning.apply(opened.planning)
    protocol = Protocol.to_other_room(episodes, seed) if across else Protocol.along(offset, episodes, seed)
    world = opened.world(episodes)
    pairs = draw_pairs(opened.episodes, opened.heldout, world, protocol)
    pairs = pairs[pairs.strict][:episodes]  # what begins solved has nothing to show
    recordings = record_episodes(opened.model, config, world, opened.episodes, pairs, protocol)
    view = _view(opened, world.spec)
    frames = []
    with console.Bars() as bars:
        for number, recording in enumerate(recordings, 1):
            frames += draw_episode(recording, protocol.budget, view)
            bars.update("draw", number, len(recordings))
    save_animation(frames, out)
    attempts = [
        {"start": r.states[0].tolist(), "goal": r.goal_state.tolist(), "success_step": r.success_step, "plans": len(r.replans)}
        for r in recordings
    ]
    for number, attempt in enumerate(attempts, 1):
        step = attempt["success_step"]
        ending = "goal not reached" if step is None else f"goal reached after {step} steps"
        console.say(f"episode {number}: {ending}, {attempt['plans']} plans")
    console.say(str(out.resolve()))
    if json:
        write_json(json, {"run": str(run), "task": protocol.name, "attempts": attempts, "animation": str(out)})


def _view(opened: Run, spec: EnvSpec) -> View | None:
    """How imagined latents are drawn into the picture, where the state begins with a place in it: through a linear probe."""
    if spec.picture_extent is None or spec.tolerance is None:
        return None
    probing = Probing().run(opened.model, opened.episodes, *opened.for_probes)
    return View(Probe.of(probing).predict, spec.picture_extent, spec.tolerance)
