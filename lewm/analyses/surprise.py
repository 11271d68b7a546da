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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Result, World, WorldModel, WorldSpec
from lewm.data.episodes import check_fits
from lewm.models.nn.frozen import FRAMES_AT_ONCE, device_of, encode, require_evaluation_mode
from lewm.runs.run import Progress, Run, Unsupported
from lewm.stats import bootstrap_mean, p_value, rank_correlation

__all__ = ["Surprise", "compare", "score", "tell"]  # the analysis first

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

    def run(self, run: Run, progress: Progress = lambda *_: None) -> Result:
        """Measure the surprise of frames around edits: the squared error of the predicted latent,
        mean over D.

        Every frame is predicted from the encoded latents of the K frames before it and the blocks
        executed from them.

        Returns:
            What `tell` says, and more. In `edits`: `picture_change`, the mean absolute difference
            between edited and unedited picture in grey levels, and of a teleport
            `size_correlation`, the rank correlation of surprise and distance moved. `world`,
            `look`, `turn`, `frameskip`; of `recorded` and `played` episodes how many; `replay`, how
            far the unedited continuation is from the recorded one at most, in standard deviations
            of a state variable, velocities aside: the `median` and `p90` over episodes, and the
            share that is `exact`.

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
        further: list[dict[str, float]] = []
        for edit in edits:
            progress(len(ways), len(edits), edit.name)
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
            further.append({"picture_change": float(change)})
            if edit.kind == "teleport":
                moved = np.sqrt(np.square(_apart(spec, start, way[:, 0])).sum(axis=1))
                further[-1]["size_correlation"] = rank_correlation(
                    moved, surprise[-1][:, self.before]
                )
        progress(len(edits), len(edits), "")

        result = tell(np.stack(surprise), edits, self.before, self.draws, self.seed)
        (rows,) = result.tables.values()
        for told, row, found in zip(
            result.values["edits"].values(), rows, further[1:], strict=True
        ):
            told |= found
            row["picture changes by"] = f"{found['picture_change']:.2g} grey levels"
        result.values.update(
            world=spec.name,
            look=spec.look,
            turn=self.turn,
            frameskip=model.spec.frameskip,
            recorded=recorded,
            played=len(states) - recorded,
            replay=_replay(spec, states[:recorded, K + self.before :], ways[0][:recorded]),
        )
        return result

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
) -> Result:
    """Say what surprises: tests against normal motion, and how well a threshold on the surprise
    tells the edited frames.

    The threshold of an episode is the 95th percentile of the normal frames of the other half of the
    episodes.

    Args:
        surprise: (C, n, F) of n episodes under C edits, the control first; the edit is at frame
            `before`.

    Returns:
        Values: `edits`, by name: `kind`, what `compare` says, `detection_at_5_percent`, and of a
        teleport `against_colour`, the `auc` of telling its frames from those where the same things
        changed their colour; `unperturbed`, the `mean` at that frame; `false_alarms`, the `rate` of
        normal frames above the threshold, and the `nominal` one; with intervals. `conditions`, the
        C names; `episodes`, n; `warning`, "" if they are enough. Arrays: `surprise`; its `mean`,
        `low` and `high` (C, F), a 95% band over episodes; `frames` (F,), blocks since the edit;
        `roc` (C-1, G), rates at which edits are told from normal frames, and `roc_colour`, at which
        teleports are told from changes of colour, at the rates of false alarms `roc_false_alarms`
        (G,).
    """
    C, n, F = surprise.shape
    normal, at, everyone = surprise[0], surprise[:, :, before], np.arange(n)
    half = np.random.default_rng(seed).permutation(n) % 2
    thresholds = np.array([np.quantile(normal[half != side], 1 - FALSE_ALARMS) for side in (0, 1)])[
        half
    ]
    false_alarms = (normal > thresholds[:, None]).mean(axis=1)
    alarms = np.linspace(0, 1, 201)
    told: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[np.ndarray]] = {"roc": [], "roc_colour": []}
    for edit, edited in zip(edits[1:], at[1:], strict=True):
        told[edit.name] = {
            "kind": edit.kind,
            **compare(normal, edited, before, draws, seed),
            "detection_at_5_percent": float((edited > thresholds).mean()),
            "detection_interval": list(
                bootstrap_mean(edited > thresholds, everyone, draws, seed=seed)
            ),
        }
        curves["roc"].append((edited > np.quantile(normal, 1 - alarms)[:, None]).mean(axis=1))
        painted = at[
            [other.kind == "colour" and set(other.things) <= set(edit.things) for other in edits]
        ]
        if edit.kind == "teleport" and len(painted):
            told[edit.name]["against_colour"] = _told_apart(edited, painted.T, draws, seed)
            curves["roc_colour"].append(
                (edited > np.quantile(painted, 1 - alarms)[:, None]).mean(axis=1)
            )
    bands = np.array(
        [
            [bootstrap_mean(surprise[c, :, f], everyone, draws, seed=seed) for f in range(F)]
            for c in range(C)
        ]
    )
    warning = "" if n >= ENOUGH else f"only {n} episodes where {ENOUGH} are asked for"
    return Result(
        name="surprise",
        values={
            "episodes": n,
            "warning": warning,
            "conditions": [edit.name for edit in edits],
            "unperturbed": {"mean": float(at[0].mean()), "interval": bands[0, before].tolist()},
            "edits": told,
            "false_alarms": {
                "nominal": FALSE_ALARMS,
                "rate": float(false_alarms.mean()),
                "interval": list(bootstrap_mean(false_alarms, everyone, draws, seed=seed)),
            },
        },
        arrays={
            "surprise": surprise,
            "mean": surprise.mean(axis=1),
            "low": bands[..., 0],
            "high": bands[..., 1],
            "frames": np.arange(F) - before,
            "roc_false_alarms": alarms,
            **{name: np.reshape(rates, (-1, len(alarms))) for name, rates in curves.items()},
        },
        tables={
            f"surprise at the edit, {warning or f'{n} episodes'}": [
                _row(name, entry) for name, entry in told.items()
            ]
        },
    )


def compare(
    normal: np.ndarray, edited: np.ndarray, at: int, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compare the surprise of n edited frames with that of the same episodes unedited.

    Args:
        normal: (n, F) of unedited frames.
        edited: (n,) at the edit.
        at: which of the F frames that is.

    Returns:
        `n`; `mean`; `ratio` of the means; `mean_difference` and its `interval`; `t` and `t_p` of
        the paired t-test and `wilcoxon_p` of the signed-rank test; `effect_size`, Cohen's d_z: the
        mean difference in their standard deviations; `auc` of telling edited frames from all normal
        ones. Intervals are 95%, over episodes; undefined ratios are NaN.
    """
    from scipy.stats import ttest_rel, wilcoxon

    difference = edited - normal[:, at]
    t, t_p, wilcoxon_p, effect = 0.0, 1.0, 1.0, 0.0  # of an edit that changes nothing
    if difference.any():
        t, t_p = (float(value) for value in ttest_rel(edited, normal[:, at]))
        wilcoxon_p = float(wilcoxon(difference).pvalue)
        effect = (
            float(difference.mean() / difference.std(ddof=1))
            if np.ptp(difference)
            else float("nan")
        )
    return {
        "n": len(edited),
        "mean": float(edited.mean()),
        "ratio": float(edited.mean() / normal[:, at].mean())
        if normal[:, at].any()
        else float("nan"),
        "mean_difference": float(difference.mean()),
        "interval": list(bootstrap_mean(difference, np.arange(len(difference)), draws, seed=seed)),
        "t": t,
        "t_p": t_p,
        "wilcoxon_p": wilcoxon_p,
        "effect_size": effect,
        **_told_apart(edited, normal, draws, seed),
    }


def _told_apart(edited: np.ndarray, others: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
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
    return {"auc": float(more.mean()), "auc_interval": np.quantile(areas, [0.025, 0.975]).tolist()}


def _row(name: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "edit": name,
        "times normal": f"{told['ratio']:.3g}",
        "effect size": f"{told['effect_size']:.2f}",
        "p (t)": p_value(told["t_p"]),
        "p (Wilcoxon)": p_value(told["wilcoxon_p"]),
        "AUC": _area(told),
        "AUC against colour": _area(told["against_colour"]) if "against_colour" in told else "",
        "found at 5%": f"{told['detection_at_5_percent']:.0%}",
    }


def _area(told: dict[str, Any]) -> str:
    low, high = told["auc_interval"]
    return f"{told['auc']:.2f} [{low:.2f}, {high:.2f}]"


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


def _replay(spec: WorldSpec, recorded: np.ndarray, again: np.ndarray) -> dict[str, float]:
    if not len(recorded):
        return {}
    median, p90 = np.quantile(
        np.abs(_apart(spec, recorded, again)).max(axis=(1, 2)), [0.5, 0.9]
    ).tolist()
    return {
        "exact": float((recorded == again).all(axis=(1, 2)).mean()),
        "median": median,
        "p90": p90,
    }
