"""Is a model surprised by what cannot happen? Prediction errors where a thing jumps or changes its
colour, and where none does.

In the middle of an episode a thing is elsewhere from one frame to the next (teleport), or has
another colour from then on. All conditions go on by the same actions in the same world; what is not
edited is put into its own state, as others are into an edited one, and drawn anew. So they differ
by the edit alone, and an episode is compared with itself.

Source: LeWorldModel, violation of expectation: prediction error per frame, three conditions, a
paired t-test between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Progress, Report, World, WorldModel, WorldSpec, check_numbers, silent
from lewm.data.episodes import check_fits
from lewm.models.nn.frozen import FRAMES_AT_ONCE, device_of, encode, require_evaluation_mode
from lewm.runs.results import Interval, Result, Tables, defined, interval
from lewm.runs.run import Run, Unsupported
from lewm.stats import bootstrap_mean, p_value, rank_correlation

__all__ = ["Surprise", "SurpriseResult", "compare", "score", "tell"]  # the analysis first

# episodes below which nothing is reported, and below which a result carries a warning
FEWEST, ENOUGH = 20, 100
FALSE_ALARMS = 0.05  # share of normal frames above the threshold of a detector


@dataclass(frozen=True)
class Edit:
    """What is done to an episode.

    Attributes:
        kind: "teleport", "colour", or "unperturbed".
        things: of the world, to which it is done; none if it is not perturbed.
    """

    kind: str
    things: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind} of {' and '.join(self.things)}" if self.things else self.kind


CONTROL = Edit("unperturbed", ())

Segment = tuple[np.ndarray, np.ndarray]
"""Part of an episode: (J, S) states of frames one action block apart, and the (J-1, frameskip, a)
env actions between them."""


@dataclass(frozen=True)
class Apart:
    """How well frames are told apart by their surprise: the area under the curve, with its
    interval."""

    auc: float
    auc_interval: Interval


@dataclass(frozen=True)
class Compared(Apart):
    """The surprise of edited frames beside that of the same episodes unedited, and as a detector
    among all normal frames. Intervals are 95%, over episodes.

    Attributes:
        n: episodes.
        mean, ratio: of the edited frames, and how many times that of the unedited ones; None where
            nothing unedited surprises.
        mean_difference, interval: of each episode from itself.
        t, t_p: the paired t-test; t is None where all differ by the same.
        wilcoxon_p: of the signed-rank test.
        effect_size: Cohen's d_z, the mean difference in their standard deviations; None likewise.
    """

    n: int
    mean: float
    ratio: float | None
    mean_difference: float
    interval: Interval
    t: float | None
    t_p: float
    wilcoxon_p: float
    effect_size: float | None


@dataclass(frozen=True)
class Edited(Compared):
    """What is said of one edit.

    Attributes:
        kind: as of an `Edit`.
        detection_at_5_percent, detection_interval: share found by a threshold, see `tell`.
        against_colour: of a teleport, its frames told from those where the same things changed
            their colour.
        picture_change: mean absolute difference between edited and unedited picture in grey
            levels; None where no picture was drawn.
        size_correlation: of a teleport, rank correlation of surprise and distance moved; None
            where one of them never varies.
    """

    kind: str
    detection_at_5_percent: float
    detection_interval: Interval
    against_colour: Apart | None = None
    picture_change: float | None = None
    size_correlation: float | None = None


@dataclass(frozen=True)
class Level:
    """A mean over episodes."""

    mean: float
    interval: Interval


@dataclass(frozen=True)
class FalseAlarms:
    """The rate of normal frames above the threshold, and the nominal one."""

    nominal: float
    rate: float
    interval: Interval


@dataclass(frozen=True)
class Replay:
    """How far the unedited continuation is from the recorded one at most, in standard deviations
    of a state variable, velocities aside: over episodes, and the share that is `exact`."""

    exact: float
    median: float
    p90: float


@dataclass(frozen=True)
class SurpriseResult(Result):
    """Surprise of n episodes in F frames around C - 1 edits, with intervals over episodes.

    Attributes:
        episodes: n.
        warning: "" if they are enough.
        conditions: the C names, the control first.
        unperturbed: surprise of the frame of the edit, where there is none.
        edits: by name.
        false_alarms: of the threshold.
        world, look, turn: in which world, and by how much of the colour wheel colours changed.
        frameskip: env steps from frame to frame.
        recorded, played: episodes of either kind.
        replay: of the recorded ones; None where there are none.
        surprise: (C, n, F).
        mean, low, high: (C, F) with a 95% band over episodes.
        frames: (F,) blocks since the edit.
        roc, roc_colour: (C-1, G) and (teleports, G) rates at which edits are told from normal
            frames, and teleports from changes of colour.
        roc_false_alarms: (G,) the rates of false alarms of both.
    """

    episodes: int
    warning: str
    conditions: tuple[str, ...]
    unperturbed: Level
    edits: Mapping[str, Edited]
    false_alarms: FalseAlarms
    surprise: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    frames: np.ndarray
    roc: np.ndarray
    roc_colour: np.ndarray
    roc_false_alarms: np.ndarray
    world: str = ""
    look: str = ""
    turn: float = 0.5
    frameskip: int = 1
    recorded: int = 0
    played: int = 0
    replay: Replay | None = None

    name: ClassVar[str] = "surprise"

    def tables(self) -> Tables:
        """A row per edit."""
        over = self.warning or f"{self.episodes} episodes"
        rows = [_row(name, edit) for name, edit in self.edits.items()]
        return {f"surprise at the edit, {over}": rows}


@dataclass(frozen=True)
class Surprise:
    """Edit episodes in the middle, and compare prediction errors with those of the same episodes
    unedited.

    Attributes:
        episodes: to measure. Where fewer were held out, others are played by the policy that the
            file names, from seeds of their own; but not in a world so slow to draw that its file
            has one row per action block.
        before, after: frames around that of the edit, one action block apart.
        turn: by how much of the colour wheel colours change; half of it is farthest.
        draws: of the bootstraps over episodes.
        seed: of the choice of episodes, of what is played, of where things are put, and of the
            bootstraps.
    """

    episodes: int = 100
    before: int = 4
    after: int = 3
    turn: float = 0.5
    draws: int = 1000
    seed: int = 0

    name: ClassVar[str] = "surprise"
    question: ClassVar[str] = "Is the model surprised by what cannot happen?"
    result: ClassVar[type[Result]] = SurpriseResult

    def __post_init__(self) -> None:
        check_numbers(self, least={"episodes": 1, "before": 1, "draws": 1}, most={"turn": 1})

    def run(self, run: Run, report: Report = silent) -> SurpriseResult:
        """Measure the surprise of frames around edits: the squared error of the predicted latent,
        mean over D.

        Every frame is predicted from the encoded latents of the K frames before it and the blocks
        executed from them.

        Raises:
            Unsupported: no states, no world, a world in which nothing can be edited, or fewer than
                20 episodes.
            ValueError: the model is in training mode, or the episodes do not fit it.

        Cost: of each episode K + before + (E + 1) (1 + after) pictures are drawn and encoded, for E
        edits: 2 in a world of one thing, 5 in one of two.
        """
        model, K = run.model, run.model.context
        require_evaluation_mode(model)
        run.require_states()
        check_fits(run.episodes, model.spec.image_size, model.spec.statistics.action_dim)
        painter = _opened(run, 1)
        spec = painter.spec
        if not spec.things:
            raise Unsupported(
                f"expected a world in which something can be edited, got '{spec.name}', which "
                "names nothing."
            )
        segments = self._recorded(run, spec)
        recorded = len(segments)
        if (
            run.episodes.every == 1
            and run.episodes.provenance.policy in painter.policies
            and recorded < self.episodes
        ):
            segments += self._played(run, self.episodes - recorded)
        if len(segments) < FEWEST:
            raise Unsupported(
                f"{run.episodes.path}: expected at least {FEWEST} held-out episodes of "
                f"{K + self.before + self.after} blocks, for tests over episodes, got "
                f"{len(segments)}. Collect more, or longer ones."
            )
        states, actions = (np.stack(parts) for parts in zip(*segments, strict=True))
        world, seeds = _opened(run, len(states)), _seeds(self.seed, "teleport", len(states))
        start, blocks = states[:, K + self.before], actions[:, K + self.before :]
        past = _latents(model, painter, states[:, : K + self.before])

        each = [(thing,) for thing in spec.things]
        # in a world of one it is all
        teleports = [Edit("teleport", things) for things in dict.fromkeys([*each, spec.things])]
        edits = [CONTROL, *teleports, *(Edit("colour", things) for things in each)]
        ways: list[np.ndarray] = []
        surprise: list[np.ndarray] = []
        changes: list[float] = []
        by_size: list[float | None] = []
        for edit in edits:
            report(Progress(self.name, len(ways), len(edits), edit.name))
            if edit.kind == "colour":
                drawn_by, way = (
                    _opened(run, 1, painter.recoloured(edit.things[0], self.turn)),
                    ways[0],
                )
            else:
                drawn_by, way = (
                    painter,
                    _continued(world, world.teleport(edit.things, start, seeds), blocks),
                )
            ways.append(way)
            surprise.append(
                score(model, torch.cat([past, _latents(model, drawn_by, way)], dim=1), actions)
            )
            change = np.abs(
                drawn_by.render(way[:, 0]).astype(np.float32) - painter.render(start)
            ).mean()
            changes.append(float(change))
            by_size.append(None)
            if edit.kind == "teleport":
                moved = np.sqrt(np.square(_apart(spec, start, way[:, 0])).sum(axis=1))
                by_size[-1] = defined(rank_correlation(moved, surprise[-1][:, self.before]))
        report(Progress(self.name, len(edits), len(edits)))

        result = tell(np.stack(surprise), edits, self.before, self.draws, self.seed)
        told = zip(result.edits.items(), changes[1:], by_size[1:], strict=True)
        return replace(
            result,
            edits={
                name: replace(edit, picture_change=change, size_correlation=rho)
                for (name, edit), change, rho in told
            },
            world=spec.name,
            look=spec.look,
            turn=self.turn,
            frameskip=model.spec.frameskip,
            recorded=recorded,
            played=len(states) - recorded,
            replay=_replay(spec, states[:recorded, K + self.before :], ways[0][:recorded]),
        )

    def _recorded(self, run: Run, spec: WorldSpec) -> list[Segment]:
        """Of held-out episodes, the edit in the middle or as near to it as the frames around it
        allow."""
        episodes, past = run.episodes, run.model.context + self.before
        stride, rest = divmod(run.model.spec.frameskip, episodes.every)
        if rest or len(episodes.state_names) != len(spec.state_names):
            raise Unsupported(
                f"{episodes.path}: expected {len(spec.state_names)} state variables at the ends "
                f"of blocks of {run.model.spec.frameskip} steps, got {len(episodes.state_names)} "
                f"every {episodes.every}. Collect anew."
            )
        found: list[Segment] = []
        for i in (
            np.random.default_rng(self.seed)
            .permutation(np.asarray(run.test_ids, np.int64))
            .tolist()
        ):
            last = int(episodes.lengths[i]) - 1
            if len(found) < self.episodes and last >= (past + self.after) * stride:
                middle = min(max((last + 1) // 2, past * stride), last - self.after * stride)
                rows = middle + stride * np.arange(-past, self.after + 1)
                blocks = episodes.actions(i)[rows[0] : rows[-1]].reshape(
                    past + self.after, -1, episodes.action_dim
                )
                found.append((episodes.states(i)[rows], blocks))
        return found

    def _played(self, run: Run, count: int) -> list[Segment]:
        """Of new episodes, the edit as late as in the middle one of the file's episodes."""
        model, past = run.model, run.model.context + self.before
        world = _opened(run, count)
        world.reset(_seeds(self.seed, "world", count))
        act = world.policy(str(run.episodes.provenance.policy), _seeds(self.seed, "policy", count))

        def step() -> np.ndarray:
            actions = np.clip(act(), world.spec.action_low, world.spec.action_high).astype(
                np.float32
            )
            world.step(actions)
            return actions

        for _ in range(int(np.median(run.episodes.lengths)) // 2 - past * model.spec.frameskip):
            step()
        states, blocks = [world.states], []
        for _ in range(past + self.after):
            blocks.append(np.stack([step() for _ in range(model.spec.frameskip)], axis=1))
            states.append(world.states)
        return list(zip(np.stack(states, axis=1), np.stack(blocks, axis=1), strict=True))


def score(model: WorldModel, latents: Tensor, blocks: np.ndarray) -> np.ndarray:
    """The surprise of each frame but the first K.

    Args:
        latents: (n, J, D) of frames one action block apart.
        blocks: (n, J-1, frameskip, a) env actions; block j is executed from frame j on.

    Returns:
        (n, J-K) float64: squared error of the predicted latent, mean over D.
    """
    K, (n, J, D) = model.context, latents.shape
    actions = model.spec.statistics.normalise_actions(
        torch.from_numpy(blocks.astype(np.float32)).flatten(2)
    )
    windows = torch.arange(J - K)[:, None] + torch.arange(K)
    context = latents[:, windows].flatten(0, 1)
    taken = actions.to(device_of(model))[:, windows].flatten(0, 1)
    predicted = []
    with torch.no_grad():
        for part in torch.arange(n * (J - K)).split(FRAMES_AT_ONCE):
            predicted.append(
                model.rollout(context[part], taken[part, :-1], taken[part, None, -1:])[:, 0, 0]
            )
    error = torch.cat(predicted).view(n, J - K, D).double() - latents[:, K:].double()
    return error.square().mean(dim=2).cpu().numpy()


def tell(
    surprise: np.ndarray, edits: Sequence[Edit], before: int, draws: int = 1000, seed: int = 0
) -> SurpriseResult:
    """Say what surprises: tests against normal motion, and how well a threshold on the surprise
    tells the edited frames.

    The threshold of an episode is the 95th percentile of the normal frames of the other half of the
    episodes.

    Args:
        surprise: (C, n, F) of n episodes under C edits, the control first; the edit is at frame
            `before`.
    """
    C, n, F = surprise.shape
    normal, at, everyone = surprise[0], surprise[:, :, before], np.arange(n)
    half = np.random.default_rng(seed).permutation(n) % 2
    thresholds = np.array([np.quantile(normal[half != side], 1 - FALSE_ALARMS) for side in (0, 1)])[
        half
    ]
    false_alarms = (normal > thresholds[:, None]).mean(axis=1)
    alarms = np.linspace(0, 1, 201)
    told: dict[str, Edited] = {}
    curves: dict[str, list[np.ndarray]] = {"roc": [], "roc_colour": []}
    for edit, edited in zip(edits[1:], at[1:], strict=True):
        curves["roc"].append((edited > np.quantile(normal, 1 - alarms)[:, None]).mean(axis=1))
        painted = at[
            [other.kind == "colour" and set(other.things) <= set(edit.things) for other in edits]
        ]
        rivalled = edit.kind == "teleport" and len(painted) > 0
        if rivalled:
            curves["roc_colour"].append(
                (edited > np.quantile(painted, 1 - alarms)[:, None]).mean(axis=1)
            )
        found = edited > thresholds
        told[edit.name] = Edited(
            **vars(compare(normal, edited, before, draws, seed)),
            kind=edit.kind,
            detection_at_5_percent=float(found.mean()),
            detection_interval=bootstrap_mean(found, everyone, draws, seed=seed),
            against_colour=_told_apart(edited, painted.T, draws, seed) if rivalled else None,
        )
    bands = np.array(
        [
            [bootstrap_mean(surprise[c, :, f], everyone, draws, seed=seed) for f in range(F)]
            for c in range(C)
        ]
    )
    warning = "" if n >= ENOUGH else f"only {n} episodes where {ENOUGH} are asked for"
    rates = {name: np.reshape(of, (-1, len(alarms))) for name, of in curves.items()}
    return SurpriseResult(
        episodes=n,
        warning=warning,
        conditions=tuple(edit.name for edit in edits),
        unperturbed=Level(float(at[0].mean()), interval(bands[0, before])),
        edits=told,
        false_alarms=FalseAlarms(
            FALSE_ALARMS,
            float(false_alarms.mean()),
            bootstrap_mean(false_alarms, everyone, draws, seed=seed),
        ),
        surprise=surprise,
        mean=surprise.mean(axis=1),
        low=bands[..., 0],
        high=bands[..., 1],
        frames=np.arange(F) - before,
        roc=rates["roc"],
        roc_colour=rates["roc_colour"],
        roc_false_alarms=alarms,
    )


def compare(
    normal: np.ndarray, edited: np.ndarray, at: int, draws: int = 1000, seed: int = 0
) -> Compared:
    """Compare the surprise of n edited frames with that of the same episodes unedited.

    Args:
        normal: (n, F) of unedited frames.
        edited: (n,) at the edit.
        at: which of the F frames that is.
    """
    from scipy.stats import ttest_rel, wilcoxon

    difference, before = edited - normal[:, at], normal[:, at].mean()
    t, t_p, wilcoxon_p, effect = 0.0, 1.0, 1.0, 0.0  # of an edit that changes nothing
    if difference.any():
        t, t_p = (float(value) for value in ttest_rel(edited, normal[:, at]))
        wilcoxon_p = float(wilcoxon(difference).pvalue)
        varied = np.ptp(difference) > 0
        effect = float(difference.mean() / difference.std(ddof=1)) if varied else np.nan
    return Compared(
        **vars(_told_apart(edited, normal, draws, seed)),
        n=len(edited),
        mean=float(edited.mean()),
        ratio=float(edited.mean() / before) if normal[:, at].any() else None,
        mean_difference=float(difference.mean()),
        interval=bootstrap_mean(difference, np.arange(len(difference)), draws, seed=seed),
        t=defined(t),
        t_p=t_p,
        wilcoxon_p=wilcoxon_p,
        effect_size=defined(effect),
    )


def _told_apart(edited: np.ndarray, others: np.ndarray, draws: int, seed: int) -> Apart:
    """AUC of telling (n,) edited frames by their surprise from (n, k) other frames of the same
    episodes, and its interval.

    The area is the chance that an edited frame surprises more, ties counting half. By pairs of
    episodes that is a matrix, and a bootstrap, which draws episodes with their number of times,
    multiplies it by those numbers from both sides.
    """
    n, apart = len(edited), edited[:, None, None] - others
    more = ((apart > 0) + 0.5 * (apart == 0)).mean(axis=2)  # (n, n)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    areas = ((counts @ more) * counts).sum(axis=1) / n**2
    return Apart(float(more.mean()), interval(np.quantile(areas, [0.025, 0.975])))


def _row(name: str, edit: Edited) -> dict[str, Any]:
    row = {
        "edit": name,
        "times normal": "-" if edit.ratio is None else f"{edit.ratio:.3g}",
        "effect size": "-" if edit.effect_size is None else f"{edit.effect_size:.2f}",
        "p (t)": p_value(edit.t_p),
        "p (Wilcoxon)": p_value(edit.wilcoxon_p),
        "AUC": _area(edit),
        "AUC against colour": _area(edit.against_colour) if edit.against_colour else "",
        "found at 5%": f"{edit.detection_at_5_percent:.0%}",
    }
    if edit.picture_change is not None:
        row["picture changes by"] = f"{edit.picture_change:.2g} grey levels"
    return row


def _area(told: Apart) -> str:
    low, high = told.auc_interval
    return f"{told.auc:.2f} [{low:.2f}, {high:.2f}]"


def _opened(run: Run, num_envs: int, *look: str) -> World:
    if run.open_world is None:
        raise Unsupported(
            "expected a run whose world is known, to edit episodes in it, got one without. Train "
            "with --world NAME, or open the run with its class: lewm.open_run(RUN, world=MyEnv)."
        )
    try:
        return run.open_world(num_envs, *look)
    # a package or a graphics driver is missing; the message names it
    except (ImportError, ValueError) as error:
        raise Unsupported(f"the world of this run cannot be opened here: {error}") from error


def _seeds(seed: int, purpose: str, count: int) -> list[int]:
    """One per episode, of the seed and its number alone; those of a collection have two parts, so
    none of them is met again."""
    words = seed, ("teleport", "world", "policy").index(purpose)
    return [
        int(np.random.SeedSequence((*words, i)).generate_state(1, np.uint64)[0] >> 1)
        for i in range(count)
    ]


def _continued(world: World, start: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Execute (n, J, frameskip, a) blocks from (n, S) states on: (n, 1 + J, S) states at their
    ends, the start first."""
    world.set_states(start)
    states = [start]
    for block in blocks.swapaxes(0, 1):
        for actions in block.swapaxes(0, 1):
            world.step(actions)
        states.append(world.states)
    return np.stack(states, axis=1)


def _latents(model: WorldModel, painter: World, states: np.ndarray) -> Tensor:
    """(n, J, S) states -> (n, J, D) latents of their pictures, of which n are in memory at a
    time."""
    pictures = (
        torch.from_numpy(painter.render(each)).permute(0, 3, 1, 2)[:, None]
        for each in states.swapaxes(0, 1)
    )
    return torch.cat([encode(model, each).float() for each in pictures], dim=1)


def _apart(spec: WorldSpec, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(..., S) differences in standard deviations of `first`, angles the short way round;
    velocities, which do not show, 0."""
    difference = second.astype(np.float64) - first
    angle = np.array([unit == "rad" for unit in spec.state_units])
    difference[..., angle] = (difference[..., angle] + np.pi) % (2 * np.pi) - np.pi
    spread = first.reshape(-1, first.shape[-1]).std(axis=0, dtype=np.float64)
    velocity = [unit.endswith("/s") for unit in spec.state_units]
    return np.where(velocity, 0.0, difference / np.where(spread > 1e-6, spread, 1.0))


def _replay(spec: WorldSpec, recorded: np.ndarray, again: np.ndarray) -> Replay | None:
    if not len(recorded):
        return None
    median, p90 = np.quantile(
        np.abs(_apart(spec, recorded, again)).max(axis=(1, 2)), [0.5, 0.9]
    ).tolist()
    return Replay(float((recorded == again).all(axis=(1, 2)).mean()), median, p90)
