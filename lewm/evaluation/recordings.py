"""Attempts played once more with everything kept, for animations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lewm.contracts import World, WorldModel
from lewm.data.episodes import Episodes
from lewm.evaluation.evaluate import agent_for
from lewm.evaluation.tasks import Pairs, Task, attempt
from lewm.planning.config import PlanningConfig
from lewm.planning.trace import Replan


@dataclass(frozen=True)
class Recording:
    """One attempt, frame by frame, for an animation; t is the number of env steps it lasted.

    Attributes:
        pixels: (t+1, h, w, 3) uint8.
        goal_pixels: (h, w, 3) uint8.
        states: (t+1, S).
        goal_state: (S,).
        actions: (t, a) env units; action i leads from frame i to frame i+1.
        success_step: env step of the success, with which the recording ends; None if it never came.
        replans: what was planned, with the latents in which candidates were imagined to end; see
            `agent.Replan`.
    """

    pixels: np.ndarray
    goal_pixels: np.ndarray
    states: np.ndarray
    goal_state: np.ndarray
    actions: np.ndarray
    success_step: int | None
    replans: tuple[Replan, ...]


def record_episodes(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    pairs: Pairs,
    protocol: Task,
) -> list[Recording]:
    """Play some attempts once more with everything kept. The same model, pairs and protocol give
    the attempts that were scored.

    They end with the benchmark's success, whatever else there is to meet.

    Args:
        world: every frame of all of them is kept, and a traced replan is large; a few environments
            are enough.
        pairs: those to be played, for instance `evaluation.pairs[:4]`, of one seed.
    """
    return [
        recording
        for part in pairs.portions(world.num_envs)
        for recording in _record(model, config, world, episodes, part, protocol)
    ]


def _record(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    pairs: Pairs,
    protocol: Task,
) -> list[Recording]:
    agent, goal_pixels = agent_for(model, config, world, episodes, pairs, protocol.seed, trace=True)
    pixels, states, actions = [], [], []

    def act(active: np.ndarray) -> np.ndarray:
        seen = world.render()
        pixels.append(seen[: len(pairs)])
        states.append(world.states)
        actions.append(agent.act(seen, goal_pixels, active))
        return actions[-1]

    first = attempt(world, pairs, protocol.budget, act, world.spec.criteria[:1])[0]
    frames, places = (
        np.stack([*pixels, world.render()[: len(pairs)]]),
        np.stack([*states, world.states]),
    )
    moves = np.array(actions).reshape(len(actions), world.num_envs, agent.action_dim)
    recordings = []
    for i, success in enumerate(first.tolist()):
        steps = len(moves) if success < 0 else success
        recordings.append(
            Recording(
                pixels=frames[: steps + 1, i],
                goal_pixels=goal_pixels[i],
                states=places[: steps + 1, i],
                goal_state=pairs.goals[i],
                actions=moves[:steps, i],
                success_step=None if success < 0 else success,
                replans=tuple(replan for each in agent.trace if (replan := each.of(i)) is not None),
            )
        )
    return recordings
