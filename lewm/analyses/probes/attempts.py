"""Recorded attempts as arrays, which a result can hold, and back again, for an animation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lewm.contracts import Result
from lewm.evaluation.evaluate import Recording
from lewm.planning.agent import Replan
from lewm.planning.cost import Scored

__all__ = ["arrays_of", "recordings_of"]


def arrays_of(
    recording: Recording, read: Callable[[np.ndarray], np.ndarray] | None
) -> dict[str, np.ndarray]:
    """A recording as arrays, its latents as the places they are read as; of worlds without such, no
    latents at all."""
    replans = recording.replans
    success = -1 if recording.success_step is None else recording.success_step
    arrays = {
        "pixels": recording.pixels,
        "goal": recording.goal_pixels,
        "states": recording.states,
        "goal state": recording.goal_state,
        "success": np.array([success]),
        "planned at": np.array([replan.step for replan in replans]),
    }
    if read is not None:
        arrays["ways"] = np.stack([read(replan.latents[0]) for replan in replans]).astype(
            np.float32
        )
        for number, replan in enumerate(replans):
            for k, scored in enumerate(
                round for round in replan.rounds if round.costs.shape[1] > 1
            ):
                arrays[f"ends {number} {k}"] = read(scored.ends[0]).astype(np.float32)
                arrays[f"costs {number} {k}"] = scored.costs[0].astype(np.float32)
    return arrays


def recordings_of(result: Result) -> list[Recording]:
    """The attempts that were recorded, for an animation. Their latents are places: read them with
    the identity."""
    found = []
    for number in range(len(result.values["attempts"])):
        prefix = f"attempt {number} "
        of = {
            name.removeprefix(prefix): array
            for name, array in result.arrays.items()
            if name.startswith(prefix)
        }
        success, nothing = int(of["success"][0]), np.zeros((1, 0))
        replans = []
        for k, step in enumerate(of["planned at"]):
            way = of["ways"][k] if "ways" in of else nothing
            rounds: list[Scored] = []
            while f"ends {k} {len(rounds)}" in of:
                which = f"{k} {len(rounds)}"
                rounds.append(
                    Scored(of[f"costs {which}"][None], nothing, of[f"ends {which}"][None])
                )
            one = np.zeros(1, int)
            replans.append(
                Replan(int(step), one, tuple(rounds), nothing, nothing, nothing, nothing, way[None])
            )
        steps = len(of["pixels"]) - 1
        found.append(
            Recording(
                pixels=of["pixels"],
                goal_pixels=of["goal"],
                states=of["states"],
                goal_state=of["goal state"],
                actions=np.zeros((steps, 0), np.float32),
                success_step=None if success < 0 else success,
                replans=tuple(replans),
            )
        )
    return found
