"""What an agent is asked to do, and an attempt at it: starts and goals of held-out trajectories,
the same for every policy.

One seeded stream of start/goal pairs serves two ways of counting. The *paper's protocol* takes the
first n and counts a pair as solved if the goal is ever within tolerance, at the start included. The
*strict* one takes the first n that do not begin solved, by any of the world's criteria: in Push-T
the block has to move. The union is played once and reported as both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lewm.contracts import World, check_numbers
from lewm.data.episodes import Episodes, check_fits
from lewm.worlds.kit.gym import GymWorld

DO_NOTHING = "do-nothing"

OFFSETS = (25, 50, 75, 100)
"""Env steps between start and goal: the paper's, and longer ones, where the cost rather than the
dynamics limits planning."""

Actor = Callable[[np.ndarray], np.ndarray]
"""(B,) which environments are still under way -> (B, a) env actions; what the others do changes
nothing."""


class Unavailable(ValueError):
    """This task cannot be set in this world, or with these data. The message says why, and what to
    do."""


@dataclass(frozen=True)
class Task:
    """A task. The defaults are the paper's, with 200 pairs in place of its 50, for narrower
    intervals.

    Attributes:
        offset: env steps between start and goal in the recorded trajectory.
        budget: env steps allowed.
        episodes: n, start/goal pairs.
        seed: of the pairs, the search and the random floor. Pair i depends on (seed, i) and on no
            n.
        across: start and goal are held-out frames of two different regions (rooms) of any
            trajectories, or of trajectories of one layout where layouts differ; `offset` is not
            used.
        anywhere: start and goal are drawn by the world itself, wherever its states may be, and not
            taken from recordings; `offset` is not used. With `across`, those in two regions.
    """

    offset: int = 25
    budget: int = 50
    episodes: int = 200
    seed: int = 0
    across: bool = False
    anywhere: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, least={"offset": 1, "budget": 1, "episodes": 1})

    @classmethod
    def along(cls, offset: int = 25, episodes: int = 200, seed: int = 0) -> Task:
        """Goals `offset` steps ahead, with twice as many allowed, as in the paper's task."""
        return cls(offset=offset, budget=2 * offset, episodes=episodes, seed=seed)

    @classmethod
    def to_other_room(cls, episodes: int = 200, seed: int = 0) -> Task:
        """Goals in another region, in 100 steps. Source: ours."""
        return cls(budget=100, episodes=episodes, seed=seed, across=True)

    @classmethod
    def to_anywhere(cls, episodes: int = 200, seed: int = 0, across: bool = False) -> Task:
        """Starts and goals anywhere, in 100 steps. Source: ours."""
        return cls(budget=100, episodes=episodes, seed=seed, across=across, anywhere=True)

    @property
    def name(self) -> str:
        if self.anywhere:
            return "anywhere, other room" if self.across else "anywhere"
        return "other room" if self.across else f"offset {self.offset}"


def standard_tasks(episodes: int = 200, seed: int = 0) -> tuple[Task, ...]:
    """The paper's task, three with goals further away (offsets 50, 75 and 100), and the way to the
    other room."""
    return (
        *(Task.along(offset, episodes, seed) for offset in OFFSETS),
        Task.to_other_room(episodes, seed),
    )


def named_tasks(episodes: int = 200, seed: int = 0) -> dict[str, Task]:
    """Every task that has a name, as a command is given it ("offset-25", "anywhere")."""
    tasks = (
        *standard_tasks(episodes, seed),
        Task.to_anywhere(episodes, seed),
        Task.to_anywhere(episodes, seed, across=True),
    )
    return {task.name.replace(",", "").replace(" ", "-"): task for task in tasks}


@dataclass(frozen=True)
class Pairs:
    """Start and goal of n attempts, in the order in which they were drawn.

    Attributes:
        index: (n,) place in the stream; it seeds whatever is random about the attempt.
        start_episodes, goal_episodes: (n,) the trajectories; the same one unless the task goes
            across. Of pairs that the world drew each has a number of its own.
        start_rows, goal_rows: (n,) rows of the data file; -1 where the world drew them.
        starts, goals: (n, S) states.
        solved_at_start: (n,) does the start meet the benchmark's criterion, the first of the
            world's?
        paper, strict: (n,) which of the two ways of counting the pair belongs to.
    """

    index: np.ndarray
    start_episodes: np.ndarray
    goal_episodes: np.ndarray
    start_rows: np.ndarray
    goal_rows: np.ndarray
    starts: np.ndarray
    goals: np.ndarray
    solved_at_start: np.ndarray
    paper: np.ndarray
    strict: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, chosen: slice | np.ndarray | Sequence[int]) -> Pairs:
        return Pairs(**{name: values[chosen] for name, values in vars(self).items()})

    def portions(self, size: int) -> Iterator[Pairs]:
        """All of them in their order, at most `size` at a time."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def seeds(self, num_envs: int, seed: int) -> list[int]:
        """One seed per environment, from (seed, place in the stream) alone, so that batching
        changes no attempt."""
        indices = self.index[padded(len(self), num_envs)]
        return [
            int(np.random.SeedSequence([seed, int(index)]).generate_state(1)[0])
            for index in indices
        ]

    @classmethod
    def joined(cls, several: Sequence[Pairs]) -> Pairs:
        """One after the other; `index` is then no longer unique."""
        return cls(
            **{
                name: np.concatenate([getattr(pairs, name) for pairs in several])
                for name in vars(several[0])
            }
        )


def draw_pairs(episodes: Episodes, held_out: Sequence[int], world: World, protocol: Task) -> Pairs:
    """Draw start/goal pairs uniformly over the held-out frames, without replacement of starts.

    Args:
        held_out: indices of episodes that no training saw.
        world: asked which starts are solved, and for its regions; its states are overwritten.

    Returns:
        At least `protocol.episodes` pairs: the first n, and as many more as hold n that do not
        begin solved by any criterion. Where the data run out before that, fewer strict pairs.

    Raises:
        Unavailable: no held-out trajectory is long enough, its rows are not those of this offset,
            there are too few pairs, or the world has no regions, or no goals.
        ValueError: the data have no states, some that are not finite, or states or pictures that do
            not fit the world.
    """
    if isinstance(world, GymWorld):
        raise Unavailable(world.lacking("A task with starts and goals"))
    if protocol.anywhere:
        return _drawn_by(world, protocol)
    frames = _HeldOutFrames.read(episodes, held_out, world)
    start, goal = frames.across(world, protocol) if protocol.across else frames.along(protocol)
    if len(start) < protocol.episodes:
        raise Unavailable(
            f"expected at least {protocol.episodes} start/goal pairs for '{protocol.name}', got "
            f"{len(start)} from {len(held_out)} held-out episodes. Hold out more episodes, "
            "collect more, or ask for fewer pairs."
        )
    solved = np.empty((len(world.spec.criteria), 0), bool)
    clear = np.empty(0, bool)
    while len(clear) < len(start) and clear.sum() < protocol.episodes:
        more = slice(len(clear), len(clear) + world.num_envs)
        place(world, frames.states[start[more]], frames.states[goal[more]])
        solved = np.concatenate(
            [solved, met(world, world.spec.criteria)[:, : len(start[more])]], axis=1
        )
        clear = ~np.any(solved, axis=0)
    paper = np.arange(len(clear)) < protocol.episodes
    strict = clear & (np.cumsum(clear) <= protocol.episodes)
    if not strict.any():
        raise Unavailable(
            f"all {len(clear)} held-out pairs of '{protocol.name}' begin solved. Raise the goal "
            "offset."
        )
    used = np.flatnonzero(paper | strict)
    start, goal = start[used], goal[used]
    return Pairs(
        index=used,
        start_episodes=frames.episode[start],
        goal_episodes=frames.episode[goal],
        start_rows=frames.row[start],
        goal_rows=frames.row[goal],
        starts=frames.states[start],
        goals=frames.states[goal],
        solved_at_start=solved[0, used],
        paper=paper[used],
        strict=strict[used],
    )


DRAWS_PER_PAIR = 20
"""Starts and goals that a world is asked for, for each pair that a task needs, before it is given
up."""


def _drawn_by(world: World, protocol: Task) -> Pairs:
    """Pairs that the world draws; number i of the stream depends on (seed, i) alone.

    Raises:
        Unavailable: the world has no regions to go between, or draws too few pairs that do.
    """
    starts, goals, solved = [], [], []
    index = np.zeros(0, int)
    clear = 0
    for first in range(0, DRAWS_PER_PAIR * protocol.episodes, world.num_envs):
        numbers = np.arange(first, first + world.num_envs)
        seeds = [np.random.SeedSequence([protocol.seed, int(i)]) for i in numbers]
        world.reset([int(seed.generate_state(1)[0]) for seed in seeds])
        begun = met(world, world.spec.criteria)
        chosen = np.ones(len(numbers), bool)
        if protocol.across:
            rooms = world.regions(world.states), world.regions(world.goals)
            if rooms[0] is None or rooms[1] is None:
                raise Unavailable(
                    f"world '{world.spec.name}' has no regions (rooms) to go between."
                )
            chosen = rooms[0] != rooms[1]
        index = np.concatenate([index, numbers[chosen]])
        starts.append(world.states[chosen])
        goals.append(world.goals[chosen])
        solved.append(begun[:, chosen])
        clear += int((~begun.any(axis=0) & chosen).sum())
        if clear >= protocol.episodes:
            break
    else:
        raise Unavailable(
            f"expected world '{world.spec.name}' to draw {protocol.episodes} pairs for "
            f"'{protocol.name}', got {clear} in {DRAWS_PER_PAIR * protocol.episodes} draws. Ask "
            "for fewer pairs."
        )
    began = np.concatenate(solved, axis=1)
    strict = ~began.any(axis=0)
    strict &= np.cumsum(strict) <= protocol.episodes
    paper = np.arange(len(index)) < protocol.episodes
    used = paper | strict
    return Pairs(
        index=index[used],
        start_episodes=index[used],
        goal_episodes=index[used],
        start_rows=np.full(used.sum(), -1),
        goal_rows=np.full(used.sum(), -1),
        starts=np.concatenate(starts)[used],
        goals=np.concatenate(goals)[used],
        solved_at_start=began[0, used],
        paper=paper[used],
        strict=strict[used],
    )


def goal_pictures(world: World, episodes: Episodes, pairs: Pairs) -> np.ndarray:
    """(n, h, w, 3) pictures of the goals of n pairs: the recorded ones, or where the world drew
    them, drawn."""
    if len(pairs) and (pairs.goal_rows < 0).all():
        return world.render(pairs.goals)
    return episodes.rows("pixels", pairs.goal_rows)


@dataclass(frozen=True)
class _HeldOutFrames:
    """All F held-out frames: their episode, row of the file, rows that follow within the episode,
    and (F, S) states.

    Rows are `every` env steps apart. Only recorded frames can be starts or goals: of others there
    is no picture.
    """

    episode: np.ndarray
    row: np.ndarray
    following: np.ndarray
    states: np.ndarray
    every: int
    path: Path

    @classmethod
    def read(cls, episodes: Episodes, held_out: Sequence[int], world: World) -> _HeldOutFrames:
        names = world.spec.state_names
        check_fits(episodes, world.spec.image_size, len(world.spec.action_low))
        if not len(held_out):
            raise Unavailable(
                "expected held-out episodes to draw starts and goals from, got none. Hold some "
                "out of training."
            )
        states = [np.asarray(episodes.states(int(e)), np.float32) for e in held_out]
        if states[0].shape[1] != len(names):
            raise ValueError(
                f"expected {len(names)} state variables ({', '.join(names)}), as world "
                f"'{world.spec.name}' has, got {states[0].shape[1]} in the data. Use data of this "
                "world."
            )
        lengths = np.array([len(s) for s in states])
        step = np.concatenate([np.arange(n) for n in lengths])
        return cls(
            episode=np.repeat(np.asarray(held_out), lengths),
            row=np.repeat(episodes.offsets[np.asarray(held_out)], lengths) + step,
            following=np.repeat(lengths - 1, lengths) - step,
            states=np.concatenate(states),
            every=episodes.every,
            path=episodes.path,
        )

    def along(self, protocol: Task) -> tuple[np.ndarray, np.ndarray]:
        """Frames with one `offset` steps later in the same trajectory, shuffled; one of L rows
        gives L - offset / every."""
        ahead, rest = divmod(protocol.offset, self.every)
        if rest:
            raise Unavailable(
                f"expected a goal offset that is a multiple of {self.every}, the env steps from "
                f"one row of {self.path} to the next, got {protocol.offset}. Take a multiple, or "
                "record every step (`lewm collect --every 1`)."
            )
        starts = np.flatnonzero(self.following >= ahead)
        if not len(starts):
            raise Unavailable(
                f"expected held-out episodes of more than {protocol.offset} steps, got at most "
                f"{self.following.max() * self.every} steps. Collect longer episodes, or lower "
                "the goal offset."
            )
        starts = np.random.default_rng(protocol.seed).permutation(starts)
        return starts, starts + ahead

    def across(self, world: World, protocol: Task) -> tuple[np.ndarray, np.ndarray]:
        """Every frame as a start, shuffled, each with a random frame of another region as its
        goal.

        Where surroundings differ between episodes, start and goal have the same: starts whose
        surroundings show no other region are left out.
        """
        regions = world.regions(self.states)
        if regions is None:
            raise Unavailable(f"world '{world.spec.name}' has no regions (rooms) to go between.")
        if len(np.unique(regions)) < 2:
            raise Unavailable(
                "all held-out frames lie in one region (room). Collect episodes that pass "
                "through several."
            )
        rng = np.random.default_rng(protocol.seed)
        starts = rng.permutation(len(regions))
        goals = np.full_like(starts, -1)
        columns = [world.spec.state_names.index(name) for name in world.spec.layout]
        # without a layout there is one kind of surroundings
        _, around = np.unique(self.states[:, columns], axis=0, return_inverse=True)
        around = around.reshape(-1)
        for place in np.unique(around):
            for region in np.unique(regions):
                leaving = (around[starts] == place) & (regions[starts] == region)
                others = np.flatnonzero((around == place) & (regions != region))
                if len(others):
                    goals[leaving] = rng.choice(others, leaving.sum())
        return starts[goals >= 0], goals[goals >= 0]


def attempt(
    world: World,
    pairs: Pairs,
    budget: int,
    act: Actor,
    criteria: Sequence[str],
    tick: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Play at most `num_envs` pairs in one batch, each until it met all C criteria once, or the
    budget is used up.

    Args:
        tick: called with the number of steps played, after each.

    Returns:
        (C, n) env step at which each criterion was first met: 0 at the start, -1 for never.
    """
    place(world, pairs.starts, pairs.goals)
    first = np.where(met(world, criteria), 0, -1)
    first[:, len(pairs) :] = 0  # padding has nothing to do
    for step in range(1, budget + 1):
        active = np.any(first < 0, axis=0)
        if not active.any():
            break
        world.step(act(active))
        first[(first < 0) & met(world, criteria)] = step
        if tick is not None:
            tick(step)
    return first[:, : len(pairs)]


def follow(policy: str, world: World, seeds: Sequence[int]) -> Actor:
    """One of the world's own policies as an actor, or no action at all ("do-nothing").

    Raises:
        Unavailable: the world has no such policy.
    """
    if policy == DO_NOTHING:
        zeros = np.zeros((world.num_envs, len(world.spec.action_low)), np.float32)
        return lambda active: zeros
    if policy not in world.policies:
        raise Unavailable(
            f"world '{world.spec.name}' has no policy '{policy}', only {', '.join(world.policies)}."
        )
    acts = world.policy(policy, seeds)
    return lambda active: acts()


def place(world: World, starts: np.ndarray, goals: np.ndarray) -> None:
    """Put the first n environments of the world at their starts, with their goals; the others
    repeat the last one."""
    padding = padded(len(starts), world.num_envs)
    world.set_states(starts[padding])
    world.set_goals(goals[padding])


def met(world: World, criteria: Sequence[str]) -> np.ndarray:
    """(C, B) bool: which of the criteria does each environment meet now?"""
    return np.stack([world.success(criterion) for criterion in criteria])


def padded(count: int, num_envs: int) -> np.ndarray:
    """(B,) indices 0 .. count-1, the last one repeated for environments that have nothing to do."""
    return np.minimum(np.arange(num_envs), count - 1)
