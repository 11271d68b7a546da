"""Receding-horizon control in latent space: an `Agent` turns what it sees and a goal picture into
actions.

It knows roles only. `model.encode` gives the context and the goal, `cost` makes a cost of action
sequences from the model's rollout and the objective, `solver.solve` searches it, and the first
blocks of the plan are executed before the next replan.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import (
    Asking,
    Box,
    Engined,
    Plan,
    Proposing,
    Routing,
    Tokened,
    WorldModel,
    WorldSpec,
)
from lewm.models.nn.frozen import device_of, encode, require_evaluation_mode
from lewm.planning.config import PlanningConfig
from lewm.planning.cost import OutOfTime, PlanCost, Scorer, Situation
from lewm.planning.coverage import unseen
from lewm.planning.trace import Effort, Replan

__all__ = ["Agent", "History"]


class History:
    """The last K observations and the K-1 blocks executed between them: all the past that a model
    is given.

    `observe` and `execute` alternate, once per block. The block executed after the newest
    observation is the one that leaves it, so when the next observation arrives there is one block
    between each two frames. An episode begins with one frame and no block, and the context grows to
    K.
    """

    def __init__(self, context: int, block_dim: int) -> None:
        self._block_dim = block_dim
        self._frames: deque[Tensor] = deque(maxlen=context)
        self._blocks: deque[Tensor] = deque(maxlen=context - 1)

    def observe(self, pixels: np.ndarray) -> None:
        """Add (B, h, w, 3) uint8 observations; copied."""
        self._frames.append(torch.tensor(pixels).permute(0, 3, 1, 2))

    def execute(self, blocks: Tensor) -> None:
        """Add the (B, A) normalised blocks that leave the newest observation."""
        self._blocks.append(blocks)

    @property
    def pixels(self) -> Tensor:
        """(B, k, 3, h, w) uint8, oldest first, k <= K."""
        return torch.stack(tuple(self._frames), dim=1)

    @property
    def past_actions(self) -> Tensor:
        """(B, k-1, A) blocks; block i leaves observation i. For use after `observe`, before
        `execute`."""
        return (
            torch.stack(tuple(self._blocks), dim=1)
            if self._blocks
            else torch.zeros(len(self._frames[0]), 0, self._block_dim)
        )


class Agent:
    """Plans for B environments that are stepped together, and carries the plans out.

    One generator per environment drives the search, so an environment is given the same plan alone
    or in any batch; a CUDA device draws other numbers from a seed than a CPU. What may differ is
    the last digit of a latent, where a library encodes one picture by another route than many.

    Args:
        model: in evaluation mode.
        config: how to plan.
        env_spec: gives the action box, which bounds the search, and the image size. A dimension
            that never varied in the data is planned at its recorded value; where the data show less
            than the box allows, a warning says so.
        seeds: one per environment; their number is B.
        trace: keep a `Replan` of every replan in `trace`. It costs memory, and one more rollout per
            replan that `effort` does not count.
        clock: seconds since some moment; what deadlines and efforts are measured by.

    The model is rolled out by its `engine`, where it has one, made from the weights as they are
    now.

    Raises:
        ValueError: the model is in training mode, or does not fit the world; or it has no engine of
            the precision asked for, or cannot be asked what the objective asks it.
    """

    def __init__(
        self,
        model: WorldModel,
        config: PlanningConfig,
        env_spec: WorldSpec,
        seeds: Sequence[int],
        trace: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        require_evaluation_mode(model)
        spec = model.spec
        if spec.statistics.action_dim != len(env_spec.action_low):
            raise ValueError(
                f"expected actions of width {len(env_spec.action_low)}, as world "
                f"'{env_spec.name}' takes them, got a model for width "
                f"{spec.statistics.action_dim}. Use a run that was trained on this world."
            )
        if spec.image_size != env_spec.image_size:
            raise ValueError(
                f"expected a world that draws {spec.image_size} px, as the model was trained, got "
                f"{env_spec.image_size} px. Open the world with image_size={spec.image_size}."
            )
        self.model, self.config = model, config
        self.frameskip, self.action_dim = spec.frameskip, spec.statistics.action_dim
        self._low, self._high = (
            np.asarray(x, np.float32) for x in (env_spec.action_low, env_spec.action_high)
        )
        self._device = device_of(model)
        steps = 1 if config.hold_actions else self.frameskip
        # what never varied in the data is planned at its recorded value, the mean: normalised, 0
        free = ~torch.tensor(spec.statistics.fixed_actions, device=self._device)
        self._box = Box(
            *(
                spec.statistics.normalise_actions(
                    torch.from_numpy(x).to(self._device).repeat(steps)
                ).where(free.repeat(steps), 0.0)
                for x in (self._low, self._high)
            )
        )
        if note := unseen(spec.statistics, env_spec.action_low, env_spec.action_high):
            warnings.warn(note, stacklevel=2)
        self._tracing, self._clock = trace, clock
        self._scorer = _scorer(model, config)
        self.reset(seeds)

    def reset(self, seeds: Sequence[int] | None = None) -> None:
        """Begin new episodes: forget the history, the plans, the trace and the effort, and seed the
        search anew.

        Args:
            seeds: one per environment; without them those last given are used again, and the same
                episodes give the same plans.
        """
        if seeds is not None:
            self._seeds = [int(seed) for seed in seeds]
        # Noise is drawn where it is used: a CPU would need longer for it than a GPU for the plans.
        where = self._device if self._device.type == "cuda" else torch.device("cpu")
        self._generators = [torch.Generator(where).manual_seed(seed) for seed in self._seeds]
        self._history = History(self.model.context, self.model.spec.block_dim)
        self._step = 0
        self._queue = np.zeros(
            (self.num_envs, self.config.receding * self.frameskip, self.action_dim), np.float32
        )
        self._previous: Tensor | None = None
        self._goal_pixels: np.ndarray | None = None
        self._goal_latents = torch.empty(0)
        self._goal_steps = torch.zeros(self.num_envs)
        self.effort = Effort()
        self.trace: list[Replan] = []

    @property
    def num_envs(self) -> int:
        return len(self._generators)

    @property
    def observes(self) -> bool:
        """Does the next `act` begin a block? Only then does it look at `pixels`, so only then need
        they be rendered."""
        return self._step % self.frameskip == 0

    @property
    def replans(self) -> bool:
        """Does the next `act` make a plan? The others only carry one out."""
        return self._step % self._queue.shape[1] == 0

    @torch.no_grad()
    def act(
        self,
        pixels: np.ndarray | None,
        goal_pixels: np.ndarray,
        active: np.ndarray | None = None,
        deadline_s: float | None = None,
    ) -> np.ndarray:
        """Return the next action of every environment. To be called at every env step, in step with
        the world.

        At the start of a block (every `frameskip` steps) the observation joins the history; when
        the executed part of the plan is used up (every `receding` blocks) it replans. A goal that
        changes in between is taken up at the next replan.

        Args:
            pixels: (B, h, w, 3) uint8 current observations; None is accepted where `observes` is
                False.
            goal_pixels: (B, h, w, 3) uint8 pictures of the goals; encoded once per goal.
            active: (B,) bool; environments that are not active are given zero actions at the next
                replan, and cost nothing.
            deadline_s: seconds from this call after which the actions should be there. The search
                stops where another round would end later, whatever the solver, and the cheapest
                sequences it has asked about become the plan; before its first round that is where
                it started from. A search that ends in time gives the plan it would give without a
                deadline. None waits for it.

        Returns:
            (B, a) float32 actions in env units, within the action box.

        Raises:
            ValueError: the model is in training mode, the pictures are not uint8 (B, h, w, 3) of
                the model's size, or no plan that was tried has a finite cost.

        Cost: `solver.evaluations` x `horizon` predictor calls per active environment and replan; in
        low precision some more.
        """
        deadline = None if deadline_s is None else self._clock() + deadline_s
        # no_grad and not inference_mode: a solver that follows gradients may enable them for its
        # own actions.
        require_evaluation_mode(self.model)
        if self.observes:
            self._history.observe(self._checked("pixels", pixels))
            if self.replans:
                chosen = (
                    np.ones(self.num_envs, bool) if active is None else np.asarray(active, bool)
                )
                self._replan(
                    self._checked("goal_pixels", goal_pixels), np.flatnonzero(chosen), deadline
                )
            self._history.execute(self._block_about_to_be_executed())
        action = self._queue[:, self._step % self._queue.shape[1]].copy()
        self._step += 1
        return action

    def _replan(self, goal_pixels: np.ndarray, chosen: np.ndarray, deadline: float | None) -> None:
        # whoever is not planned for stands still
        still = np.broadcast_to(np.clip(0, self._low, self._high), self._queue.shape)
        self._queue = still.astype(np.float32)
        if not len(chosen):
            return
        began, rows = self._clock(), torch.from_numpy(chosen)
        # look
        self._look_at_goals(goal_pixels)
        context = encode(self.model, self._history.pixels[rows])
        past = self._history.past_actions[rows].to(self._device)
        situation = Situation(context, past, self._goal_latents[rows])
        # search
        cost = PlanCost(self._scorer, situation, self._held, self._tracing, deadline, self._clock)
        plan, cut_short = self._search(cost, self._start(rows, situation), chosen)
        if hopeless := cost.hopeless:
            raise ValueError(
                "expected a model that predicts numbers for one plan at least, got NaN or infinity "
                f"for all that were tried in environment {int(chosen[hopeless[0]])} at step "
                f"{self._step}. No plan can be chosen: look at this model's training (`lewm "
                "report RUN`), or plan in float32."
            )
        # take the plan up
        mean = self._box.clamp(plan.mean)
        if self._previous is None:
            self._previous = mean.new_zeros(self.num_envs, *mean.shape[1:])
        self._previous[rows] = mean
        blocks = self._held(mean)
        actions = self._env_units(blocks)
        self._queue[chosen] = actions[:, : self._queue.shape[1]]
        # keep account
        calls = cost.sequences * self.config.horizon
        self.effort += Effort(len(chosen), calls, self._clock() - began, len(chosen) * cut_short)
        if self._tracing:
            self._trace_plan(situation, blocks, actions, chosen, cost, cut_short)

    def _search(self, cost: PlanCost, start: Plan, chosen: np.ndarray) -> tuple[Plan, bool]:
        """The plan, and whether a deadline ended the search."""
        generators = [self._generators[i] for i in chosen]
        try:
            return self.config.solver.solve(cost, start, self._box, generators), False
        except OutOfTime:
            return cost.best(start), True

    def _trace_plan(
        self,
        situation: Situation,
        blocks: Tensor,
        actions: np.ndarray,
        chosen: np.ndarray,
        cost: PlanCost,
        cut_short: bool,
    ) -> None:
        rollout = self._scorer.rollout
        latents = rollout(situation.context, situation.past_actions, blocks[:, None])[:, 0]
        plan, now, goal, way = (
            x.cpu().numpy() for x in (blocks, situation.now, situation.goal, latents)
        )
        rounds, solver = tuple(cost.rounds), self.config.solver
        routes = solver.routes(situation.now, situation.goal) if isinstance(solver, Routing) else ()
        self.trace.append(
            Replan(self._step, chosen, rounds, plan, actions, now, goal, way, cut_short, routes)
        )

    def _look_at_goals(self, goal_pixels: np.ndarray) -> None:
        """Encode the goals if one has changed, and note when it did."""
        changed = np.ones(self.num_envs, bool)
        if self._goal_pixels is not None:
            changed = (self._goal_pixels != goal_pixels).reshape(self.num_envs, -1).any(axis=1)
        if changed.any():
            self._goal_pixels = goal_pixels.copy()
            self._goal_latents = encode(
                self.model, torch.from_numpy(self._goal_pixels).permute(0, 3, 1, 2)[:, None]
            )[:, 0]
            self._goal_steps[torch.from_numpy(changed)] = self._step

    def _start(self, rows: Tensor, situation: Situation) -> Plan:
        """The Gaussian that the search begins from: what the solver proposes, what is left of the
        previous plan, or zeros."""
        mean = situation.goal.new_zeros(len(rows), self.config.horizon, len(self._box.low))
        if isinstance(self.config.solver, Proposing):
            elapsed = (self._step - self._goal_steps[rows]).to(self._device)
            blocks = self.config.solver.propose(
                situation.now, situation.goal, elapsed, self.config.horizon
            )
            held = (
                blocks.unflatten(-1, (self.frameskip, -1)).mean(dim=-2)
                if self.config.hold_actions
                else blocks
            )
            mean = self._box.clamp(held)
        elif self.config.warm_start and self._previous is not None:
            left = self._previous[rows, self.config.receding :]
            mean[:, : left.shape[1]] = left
        return Plan(mean=mean, std=torch.full_like(mean, self.config.initial_std))

    def _held(self, actions: Tensor) -> Tensor:
        """Sequences as the solver knows them -> action blocks (..., A)."""
        return (
            actions.repeat(*[1] * (actions.ndim - 1), self.frameskip)
            if self.config.hold_actions
            else actions
        )

    def _env_units(self, blocks: Tensor) -> np.ndarray:
        """(b, H, A) normalised blocks -> (b, H * frameskip, a) env actions within the box."""
        actions = self.model.spec.statistics.denormalise_actions(blocks).cpu().numpy()
        actions = actions.reshape(len(actions), -1, self.action_dim)
        return np.clip(actions, self._low, self._high)

    def _block_about_to_be_executed(self) -> Tensor:
        """(B, A) in normalised units: what the world is really given, after clipping."""
        first = self._step % self._queue.shape[1]
        block = torch.from_numpy(self._queue[:, first : first + self.frameskip]).flatten(1)
        return self.model.spec.statistics.normalise_actions(block)

    def _checked(self, name: str, pixels: np.ndarray | None) -> np.ndarray:
        shape = (self.num_envs, self.model.spec.image_size, self.model.spec.image_size, 3)
        if pixels is None or pixels.dtype != np.uint8 or pixels.shape != shape:
            got = "None" if pixels is None else f"{pixels.dtype} {pixels.shape}"
            raise ValueError(
                f"{name} must be uint8 {shape}, got {got}. A block begins here, so the agent has "
                "to look."
            )
        return pixels


def _scorer(model: WorldModel, config: PlanningConfig) -> Scorer:
    """Rollouts by the model's engine, where it has one; low precision never without float32 beside
    it."""
    engine = model.engine if isinstance(model, Engined) else None
    replayed = device_of(model).type == "cuda"
    tokens = model.tokens if isinstance(model, Tokened) else 1
    objective = config.objective
    if isinstance(objective, Asking):
        objective = objective.asking(model)
    if config.precision == "float32":
        rollout = model.rollout if engine is None else engine()
        return Scorer(rollout, objective, replayed=replayed, tokens=tokens)
    if engine is None:
        raise ValueError(
            f"expected a model with an engine for precision '{config.precision}', got a "
            f"{type(model).__name__}, which only has `rollout`. Plan in float32."
        )
    return Scorer(engine(), objective, engine(config.precision), replayed, tokens)
