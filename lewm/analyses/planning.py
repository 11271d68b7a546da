"""Does what is imagined come true? Plans carried out to their end, beside what the model imagined
of them.

A plan is chosen because of where it is imagined to end, so that is where errors count: a search
finds the sequences that the model is wrong about, if there are any. The recorded actions, on which
open-loop errors are usually measured, are not searched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lewm.analyses.probes.attempts import in_places
from lewm.analyses.probes.ridge import steady_probe
from lewm.analyses.probes.targets import readings_of
from lewm.contracts import (
    Objective,
    Progress,
    Report,
    Routing,
    Solver,
    World,
    WorldModel,
    check_numbers,
    silent,
)
from lewm.data.episodes import Episodes
from lewm.evaluation.recordings import Recording, record_episodes
from lewm.evaluation.tasks import (
    Pairs,
    Task,
    Unavailable,
    draw_pairs,
    goal_pictures,
    padded,
    place,
)
from lewm.models.nn.frozen import encode
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.runs.results import Interval, Result, Tables
from lewm.runs.run import Run, Unsupported
from lewm.stats import bootstrap

__all__ = ["Planning", "PlanningResult"]  # the analysis first

FEWEST = 4
"""Held-out episodes. Of three, more than one resample in forty is the same one three times: no
interval."""

TOGETHER = 12
"""Environments stepped side by side: worlds without a batched form open a simulator for each."""

CLIPS_BYTES = 12_000_000
"""Of the pictures that are kept of recorded attempts, at most."""


@dataclass(frozen=True)
class Block:
    """Imagined against real after a block of the plan, with 95% intervals over episodes.

    Attributes:
        steps: env steps since the start.
        error: mean distance between the imagined latent and that of the picture which came.
        copy: the same if nothing had been imagined to change.
        ratio: of the two.
        place_error: mean distance of the places that are read of both, in the unit of the world;
            None where the state does not begin with a place in the picture.
    """

    steps: int
    error: float
    copy: float
    ratio: float
    ratio_interval: Interval
    place_error: float | None
    place_error_interval: Interval | None


@dataclass(frozen=True)
class Attempt:
    """How a recorded attempt ended.

    Attributes:
        other_region: whether start and goal lie in two regions; None in a world without regions.
    """

    reached: bool
    steps: int
    plans: int
    other_region: bool | None


@dataclass(frozen=True)
class Places:
    """The map that a run plans by, where what is on it has a place in the picture.

    Attributes:
        places: (M, 2) as they are read from the latents of the map.
        links: (L, 2) numbers of places between which an edge leads.
        way: (n, 2) the start of the recorded attempt with the most waypoints, these, and its goal.
    """

    places: np.ndarray
    links: np.ndarray
    way: np.ndarray


@dataclass(frozen=True)
class PlanningResult(Result):
    """Plans carried out to their end, and attempts that look again.

    Attributes:
        pairs, episodes: of starts and goals, `offset` env steps apart.
        budget: env steps of an attempt.
        rounds: R, of a search.
        picture_extent, tolerance, unit: of places; None, None and "" in a world without.
        horizon: by block.
        attempts, recordings: what was recorded; latents of the latter are places, or nothing.
        costs: (n, R, 3) tenth percentile, median and ninetieth of the candidates' costs, relative
            to the median of the first round.
        map: that is planned by; None of a planner that goes by none, or in a world without places.
        imagined, real: (n, H+1, 2) and (n, H * frameskip + 1, 2) places; None likewise.
    """

    pairs: int
    episodes: int
    offset: int
    budget: int
    solver: str
    objective: str
    rounds: int
    picture_extent: float | None
    tolerance: float | None
    unit: str
    horizon: tuple[Block, ...]
    attempts: tuple[Attempt, ...]
    recordings: tuple[Recording, ...]
    map: Places | None
    costs: np.ndarray
    imagined: np.ndarray | None
    real: np.ndarray | None

    name: ClassVar[str] = "planning"

    def tables(self) -> Tables:
        """A row per block, and per attempt."""
        rows = []
        for block in self.horizon:
            low, high = block.ratio_interval
            row = {
                "env steps": block.steps,
                "latent error": round(block.error, 3),
                "if nothing changed": round(block.copy, 3),
                "ratio": round(block.ratio, 3),
                "95% interval": f"{low:.3f} to {high:.3f}",
            }
            if block.place_error is not None and block.place_error_interval is not None:
                low, high = block.place_error_interval
                row |= {
                    f"place off by, {self.unit}": round(block.place_error, 2),
                    "its 95% interval": f"{low:.2f} to {high:.2f}",
                }
            rows.append(row)
        regions = {True: "in another region", False: "in the same region", None: "-"}
        attempts = [
            {
                "attempt": number,
                "goal": regions[attempt.other_region],
                "reached": "yes" if attempt.reached else "no",
                "env steps": attempt.steps,
                "plans": attempt.plans,
            }
            for number, attempt in enumerate(self.attempts, 1)
        ]
        about = (
            f"One plan for each of {self.pairs} held-out pairs of {self.episodes} episodes, "
            "carried out to its end"
        )
        return {
            f"Imagined against real latents. {about}. Intervals over episodes.": rows,
            f"Attempts drawn: goals {self.offset} steps ahead, {self.budget} allowed.": attempts,
        }


@dataclass(frozen=True)
class Planning:
    """Plan as the run plans, and carry every plan out to its end, without looking again.

    Attributes:
        pairs: starts and goals of held-out episodes, for each of which one plan is made.
        offset: env steps between start and goal in the recording.
        clips: attempts that are recorded with every picture: of the pairs that do not begin solved,
            in the order in which they were drawn, the first with a goal in another region (half of
            the clips at most), then the first others.
        fit_frames: to which a read-out of places is fitted, in worlds whose state begins with a
            place in the picture.
        draws: of the bootstrap over episodes.
        seed: of pairs, search and bootstrap.
    """

    pairs: int = 48
    offset: int = 25
    clips: int = 6
    fit_frames: int = 2048
    draws: int = 500
    seed: int = 0

    name: ClassVar[str] = "planning"
    question: ClassVar[str] = "Does what the model imagines of its plans come true?"
    result: ClassVar[type[Result]] = PlanningResult

    def __post_init__(self) -> None:
        check_numbers(
            self, least={"pairs": 1, "offset": 1, "clips": 1, "fit_frames": 2, "draws": 1}
        )

    def run(self, run: Run, report: Report = silent) -> PlanningResult:
        """Make plans, carry them out, and compare.

        Raises:
            Unsupported: the world or the way to plan is unknown, or the data give too few pairs.
        """
        if run.open_world is None or run.planning is None:
            raise Unsupported(
                f"{run.episodes.path}: expected a run that says of which world it is and how it "
                "plans, got one that does not. Train it by a recipe, or on episodes of `lewm "
                "collect`."
            )
        run.require_states()
        run.require_episodes(1, FEWEST, "an interval over episodes")
        try:
            world = run.open_world(TOGETHER)
        except ValueError as error:
            raise Unsupported(f"the world of this run cannot be opened here: {error}") from error
        protocol = Task.along(self.offset, self.pairs, self.seed)
        try:
            pairs = draw_pairs(run.episodes, run.test_ids, world, protocol)
        except Unavailable as error:
            raise Unsupported(str(error)) from None
        pairs = pairs[pairs.strict]
        ended = []
        for part in pairs.portions(world.num_envs):
            ended.append(
                _carried_out(run.model, run.planning, world, run.episodes, part, self.seed)
            )
            report(Progress(self.name, len(ended), -(-len(pairs) // world.num_envs) + 1))
        plans = _Carried(
            *map(np.concatenate, zip(*(dataclasses.astuple(each) for each in ended), strict=True))
        )
        read = self._read_out(run) if world.spec.picture_extent is not None else None
        horizon = self._horizon(plans, pairs, run.model.spec.frameskip, read, world)
        chosen = self._worth_recording(pairs, world)
        few = run.open_world(len(chosen))
        recordings = record_episodes(
            run.model, run.planning, few, run.episodes, pairs[chosen], protocol
        )
        imagined = real = None
        if read is not None:
            start = plans.states[:, 0, None, :2]
            imagined = np.concatenate([start, read(plans.imagined)], axis=1).astype(np.float32)
            real = plans.states[..., :2].astype(np.float32)
        rooms = [world.regions(states) for states in (pairs.starts[chosen], pairs.goals[chosen])]
        apart = None if rooms[0] is None or rooms[1] is None else rooms[0] != rooms[1]
        return PlanningResult(
            pairs=len(pairs),
            episodes=len(np.unique(pairs.start_episodes)),
            offset=protocol.offset,
            budget=protocol.budget,
            solver=_name(run.planning.solver),
            objective=_name(run.planning.objective),
            rounds=plans.costs.shape[1],
            picture_extent=world.spec.picture_extent,
            tolerance=world.spec.tolerance,
            unit=world.spec.state_units[0] if read is not None else "",
            horizon=horizon,
            attempts=tuple(
                Attempt(
                    reached=recording.success_step is not None,
                    steps=len(recording.actions),
                    plans=len(recording.replans),
                    other_region=None if apart is None else bool(apart[k]),
                )
                for k, recording in enumerate(recordings)
            ),
            recordings=tuple(in_places(recording, read) for recording in recordings),
            map=None if read is None else _places(run.planning.solver, recordings, read),
            costs=plans.costs,
            imagined=imagined,
            real=real,
        )

    def _horizon(
        self,
        plans: _Carried,
        pairs: Pairs,
        frameskip: int,
        read: Callable[[np.ndarray], np.ndarray] | None,
        world: World,
    ) -> tuple[Block, ...]:
        """Imagined against real after each block."""
        rows = []
        groups = pairs.start_episodes
        for h in range(plans.imagined.shape[1]):
            error, copy = (
                np.linalg.norm(x - plans.real[:, h], axis=-1)
                for x in (plans.imagined[:, h], plans.now)
            )
            off = ends = None
            if read is not None:
                places = plans.states[:, (h + 1) * frameskip, :2]
                apart = np.linalg.norm(read(plans.imagined[:, h]) - places, axis=-1)
                off = float(apart.mean())
                ends = bootstrap(_mean, apart, groups=groups, draws=self.draws, seed=self.seed)
            rows.append(
                Block(
                    steps=(h + 1) * frameskip,
                    error=float(error.mean()),
                    copy=float(copy.mean()),
                    ratio=_ratio(error, copy),
                    ratio_interval=bootstrap(
                        _ratio, error, copy, groups=groups, draws=self.draws, seed=self.seed
                    ),
                    place_error=off,
                    place_error_interval=ends,
                )
            )
        return tuple(rows)

    def _read_out(self, run: Run) -> Callable[[np.ndarray], np.ndarray]:
        """(..., D) latents -> (..., 2) places: a probe of frames of episodes that were trained
        on."""
        episodes = run.episodes
        place = readings_of(episodes)[:2]
        return steady_probe(
            run.model, episodes, run.fit_ids, place, self.fit_frames, self.seed, run.seen
        ).predict

    def _worth_recording(self, pairs: Pairs, world: World) -> np.ndarray:
        """Places among the pairs, by a rule that knows nothing of how the attempts end."""
        count = self.clips
        size = 2 * world.spec.image_size**2 * 3 * self.offset
        count = max(1, min(count, CLIPS_BYTES // size, len(pairs)))
        starts, goals = world.regions(pairs.starts), world.regions(pairs.goals)
        apart = np.zeros(len(pairs), bool) if starts is None or goals is None else starts != goals
        first = np.flatnonzero(apart)[: count // 2]
        return np.concatenate(
            [
                first,
                np.setdiff1d(np.arange(len(pairs)), np.flatnonzero(apart))[: count - len(first)],
            ]
        )


def _places(
    solver: Solver, recordings: Sequence[Recording], read: Callable[[np.ndarray], np.ndarray]
) -> Places | None:
    """The map of a solver that goes by one, and the longest way over it that an attempt began
    with."""
    if not isinstance(solver, Routing):
        return None
    landmarks = solver.landmarks()
    places = read(landmarks.latents.double().cpu().numpy()).astype(np.float32)
    rows = landmarks.rows.cpu().numpy()
    begun = [(each, each.replans[0].routes[0].rows) for each in recordings if each.replans]
    way = np.zeros((0, 2), np.float32)
    if begun:
        longest, over = max(begun, key=lambda each: len(each[1]))
        by = [places[np.flatnonzero(rows == row)[:1]] for row in over]
        ends = longest.states[:1, :2], longest.goal_state[None, :2]
        way = np.concatenate([ends[0], *by, ends[1]]).astype(np.float32)
    return Places(places, solver.links(), way)


@dataclass(frozen=True)
class _Carried:
    """n plans of H blocks, carried out.

    Attributes:
        now: (n, D) latents of the pictures from which they were made.
        imagined, real: (n, H, D) latents after each block, as predicted and as encoded from the
            picture that came.
        states: (n, H * frameskip + 1, S).
        costs: (n, R, 3) percentiles of the candidates' costs, see `Planning.run`.
    """

    now: np.ndarray
    imagined: np.ndarray
    real: np.ndarray
    states: np.ndarray
    costs: np.ndarray


def _carried_out(
    model: WorldModel,
    config: PlanningConfig,
    world: World,
    episodes: Episodes,
    pairs: Pairs,
    seed: int,
) -> _Carried:
    """Plan once for each of at most `num_envs` pairs, and do what was planned, all of it."""
    n, frameskip = len(pairs), model.spec.frameskip
    place(world, pairs.starts, pairs.goals)
    agent = Agent(model, config, world.spec, pairs.seeds(world.num_envs, seed), trace=True)
    goals = goal_pictures(world, episodes, pairs)[padded(n, world.num_envs)]
    agent.act(world.render(), goals, np.arange(world.num_envs) < n)
    replan = agent.trace[0]
    states, pictures = [world.states[:n]], []
    actions = replan.actions[padded(n, world.num_envs)]
    for step in range(actions.shape[1]):
        world.step(actions[:, step])
        states.append(world.states[:n])
        if (step + 1) % frameskip == 0:
            pictures.append(world.render()[:n])
    real = np.stack([_latents(model, frames) for frames in pictures], axis=1)
    searched = [scored.costs for scored in replan.rounds if scored.costs.shape[1] > 1]
    costs = np.zeros((n, 0, 3))
    if searched:
        costs = np.stack(
            [np.nanpercentile(each, (10, 50, 90), axis=1).T for each in searched], axis=1
        )
        costs = costs / np.maximum(costs[:, :1, 1:2], 1e-12)
    return _Carried(
        replan.now.astype(np.float64),
        replan.latents.astype(np.float64),
        real,
        np.stack(states, axis=1),
        costs,
    )


def _latents(model: WorldModel, pictures: np.ndarray) -> np.ndarray:
    """(F, h, w, 3) uint8 -> (F, D) float64."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)[:, None]
    return encode(model, pixels)[:, 0].float().cpu().numpy().astype(np.float64)


def _ratio(error: np.ndarray, copy: np.ndarray) -> float:
    return float(error.mean() / max(copy.mean(), 1e-12))


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _name(part: Objective | Solver) -> str:
    return type(part).__module__.rpartition(".")[2].replace("_", "-")
