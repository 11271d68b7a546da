"""What shape does the latent space have? Straight paths, an isotropic cloud, a distance that
planning can follow, a future.

Each number stands beside what it would be by itself: a Gaussian sample of the same size, an encoder
with random weights, the pixels, the true states, a model that predicts no change. Frames of one
episode are not independent: intervals resample episodes, and what is tested against a Gaussian
takes one frame of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lewm.analyses.probes.paths import Paths, encode_paths
from lewm.contracts import Asking, Report, WorldModel, check_numbers, silent
from lewm.data.episodes import Episodes
from lewm.models.nn import losses
from lewm.models.nn.frozen import device_of, encode
from lewm.models.nn.layers import recalibrating
from lewm.models.nn.sigreg import draw_directions, sigreg_per_slice
from lewm.planning.changes import plugin_name
from lewm.runs import checkpoints
from lewm.runs.results import Interval, Result, Tables, interval
from lewm.runs.run import Run, Unsupported
from lewm.stats import FEWEST_GROUPS, bootstrap, bootstrap_mean, rank_correlation
from lewm.training.hindsight import rows_of_block

__all__ = ["Geometry", "GeometryResult"]  # the analysis first

Distance = Callable[[Tensor, Tensor], Tensor]
"""(n, D) and (n, D) latents -> (n,) what planning pays for ending in the first with the second as
its goal."""

NEAR = 0.9
"""Share of its plateau at which a cost counts as saturated. The plateau is its mean over the last
quarter of the offsets, so a cost that grows evenly gets there after some 80% of the way."""

PROJECTIONS_AT_ONCE = 2**22
"""Of Gaussian samples, held in memory together."""


@dataclass(frozen=True)
class Straightness:
    """How straight some paths are.

    Attributes:
        value, interval: mean cosine of the turns; None where nothing moved.
        n: turns.
        still: share of the turns at which nothing moved.
    """

    value: float | None
    interval: Interval | None
    n: int
    still: float


@dataclass(frozen=True)
class StraightPaths(Straightness):
    """That of the latents, beside controls: None where they are not known, or never move.

    Attributes:
        curve: update of training, and straightness of a few held-out paths then.
        curve_from: where that is from.
    """

    random_encoder: Straightness | None
    pixels: Straightness | None
    states: Straightness | None
    curve: tuple[tuple[int, float], ...]
    curve_from: str


@dataclass(frozen=True)
class Moment:
    """A number of the latents, and its range of Gaussian samples."""

    value: float
    null: Interval


@dataclass(frozen=True)
class Isotropy:
    """The SIGReg statistic of n independent latents, beside Gaussian samples of that size.

    Attributes:
        statistic: mean over directions; between `null_low` and `null_high` it lies `inside`.
        worst: of the worst direction, whose range has no lower end.
        std, skewness, kurtosis: means over dimensions.
    """

    n: int
    statistic: float
    null_low: float
    null_high: float
    null_mean: float
    inside: bool
    worst: float
    worst_null_high: float
    worst_inside: bool
    std: Moment
    skewness: Moment
    kurtosis: Moment


@dataclass(frozen=True)
class Rank:
    """Spearman's rho of a cost; None where all targets are alike, or too few episodes hold such
    pairs."""

    rho: float | None
    interval: Interval | None
    n: int
    episodes: int


@dataclass(frozen=True)
class Saturation:
    """Where a cost stops growing with the offset.

    Attributes:
        offset, interval: env steps at which it comes near its plateau.
        linear: where a cost that grows evenly would.
        plateau: its mean over the last quarter of the offsets.
        strangers: its mean for two frames of different episodes.
    """

    offset: int
    interval: tuple[int, int]
    linear: int
    plateau: float
    strangers: float


@dataclass(frozen=True)
class Ahead:
    """Squared error per dimension of a prediction some blocks ahead.

    Attributes:
        error, interval: of the prediction.
        copy, copy_interval: of no change.
        gain: interval of the difference; above 0 the prediction is better.
        n: rollouts.
        random: what two frames of different episodes differ by.
    """

    error: float
    interval: Interval
    copy: float
    copy_interval: Interval
    gain: Interval
    n: int
    random: float


@dataclass(frozen=True)
class Band:
    """(O,) mean of a cost at each offset, and a 95% band over episodes."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class GeometryResult(Result):
    """The shape of the latents of held-out episodes, with intervals over episodes.

    Attributes:
        gap: env steps between frames.
        dims_99: directions that hold 99% of the variance.
        ranks: cost -> largest offset -> its rank correlation with steps-to-go.
        ranks_states: the same with the distance of the true states; None without states.
        ranks_across: with steps-to-go between two rooms; None in a world without rooms.
        saturation: by cost.
        open_loop: by block ahead, from "1" on.
        open_loop_not_better_from: first block at which prediction is not shown to be better than
            no change; None if it always is.
        spectrum, std: (D,) variances by direction, largest first; standard deviations.
        null: (R,) statistics of the Gaussian samples.
        offsets: (O,) env steps, of `costs`.
        costs: by cost.
    """

    episodes: int
    frames: int
    gap: int
    straightness: StraightPaths
    isotropy: Isotropy
    latent_std: float
    effective_rank: float
    latent_dim: int
    dims_99: int
    ranks: Mapping[str, Mapping[str, Rank]]
    ranks_states: Mapping[str, Mapping[str, Rank]] | None
    ranks_across: Mapping[str, Mapping[str, Rank]] | None
    saturation: Mapping[str, Saturation]
    open_loop: Mapping[str, Ahead]
    open_loop_not_better_from: int | None
    spectrum: np.ndarray
    std: np.ndarray
    null: np.ndarray
    offsets: np.ndarray
    costs: Mapping[str, Band]

    name: ClassVar[str] = "geometry"

    def tables(self) -> Tables:
        """Straightness, isotropy, spread, costs and open-loop error."""
        straight, isotropy = self.straightness, self.isotropy
        held = f"{self.episodes} held-out episodes, 95% intervals over episodes."
        paths = {
            "latents": straight,
            "random encoder": straight.random_encoder,
            "states": straight.states,
            "pixels": straight.pixels,
        }
        moments = {
            "std": isotropy.std,
            "skewness": isotropy.skewness,
            "kurtosis": isotropy.kurtosis,
        }
        bands = {
            "SIGReg statistic": (isotropy.statistic, isotropy.null_low, isotropy.null_high),
            "of the worst direction": (isotropy.worst, 0.0, isotropy.worst_null_high),
            **{name: (moment.value, *moment.null) for name, moment in moments.items()},
        }
        against = {
            "steps-to-go": self.ranks,
            "distance of states": self.ranks_states or {},
            "steps-to-go to another room": self.ranks_across or {},
        }
        return {
            f"Straightness, the mean cosine of velocities {self.gap} env steps apart. {held}": [
                {
                    "path": name,
                    "S": _told(found.value, found.interval),
                    "turns": found.n,
                    "still": f"{found.still:.1%}",
                }
                for name, found in paths.items()
                if found
            ],
            f"Latents beside Gaussian samples of {isotropy.n}, one frame per held-out episode.": [
                {
                    "number": name,
                    "latents": f"{x:.3f}",
                    "Gaussian": f"{a:.3f} to {b:.3f}",
                    "inside": "yes" if a <= x <= b else "no",
                }
                for name, (x, a, b) in bands.items()
            ],
            (
                f"How many of the {self.latent_dim} dimensions are in use. {self.frames} frames "
                f"of {held}"
            ): [
                {
                    "effective rank": f"{self.effective_rank:.1f}",
                    "directions with 99% of the variance": self.dims_99,
                }
            ],
            (
                "Rank correlation of costs, over pairs of frames up to so many env steps apart. "
                f"{held}"
            ): [
                {
                    "cost": cost,
                    "against": what,
                    **{bound: _told(rank.rho, rank.interval) for bound, rank in found.items()},
                }
                for what, ranks in against.items()
                for cost, found in ranks.items()
            ],
            (
                f"Env steps at which the mean cost comes to {NEAR:.0%} of its plateau. "
                f"The plateau is the mean of the farthest quarter of offsets. {held}"
            ): [
                {
                    "cost": cost,
                    "env steps": _told(found.offset, found.interval, 0),
                    "a straight line": found.linear,
                }
                for cost, found in self.saturation.items()
            ],
            f"Open-loop error, mean square per dimension, beside that of no change. {held}": [
                {
                    "block": int(block),
                    "error": _told(found.error, found.interval),
                    "no change": _told(found.copy, found.copy_interval),
                }
                for block, found in self.open_loop.items()
            ],
        }


@dataclass(frozen=True)
class Geometry:
    """Measure held-out latents of frames that are one action block apart.

    Attributes:
        episodes: held-out ones that are looked at, at most.
        sample: episodes of which one frame each is compared with a Gaussian sample, at most.
        slices: M random directions of that comparison.
        gaussians: samples that make up its null distribution.
        offsets: env steps up to which costs are compared with steps-to-go.
        pairs: of frames per episode and offset, at most.
        horizon: H, blocks of the longest open-loop prediction.
        rollouts: per episode, at most.
        draws: of the bootstrap over episodes.
        seed: of everything that is drawn.
        controls: encode the frames with random weights as well.
    """

    episodes: int = 100
    sample: int = 500
    slices: int = 512
    gaussians: int = 200
    offsets: tuple[int, ...] = (5, 10, 25, 50, 75, 100)
    pairs: int = 40
    horizon: int = 10
    rollouts: int = 4
    draws: int = 300
    seed: int = 0
    controls: bool = True

    name: ClassVar[str] = "geometry"
    question: ClassVar[str] = (
        "What shape does the latent space have, and can planning follow its distances?"
    )
    result: ClassVar[type[Result]] = GeometryResult

    def __post_init__(self) -> None:
        check_numbers(self, least={each.name: 1 for each in fields(self)} | {"seed": 0})

    def run(self, run: Run, report: Report = silent) -> GeometryResult:
        """Measure straightness, isotropy, costs against steps-to-go, and open-loop error.

        Raises:
            Unsupported: fewer held-out episodes than an interval needs, or episodes without two
                blocks.
            ValueError: the model is in training mode, or the file does not fit it.

        Cost: episodes x frames through the encoder, twice with controls.
        """
        model, episodes = run.model, run.episodes
        generator = np.random.default_rng(self.seed)
        ids = self._long_enough(run)
        sample = _one_frame_each(
            episodes, generator.permutation(run.test_ids)[: self.sample], generator
        )
        encoders = (
            [model, _with_random_weights(model, sample, self.seed)] if self.controls else [model]
        )
        paths, *random = (
            encode_paths(encoder, episodes, ids, report, run.seen if encoder is model else None)
            for encoder in encoders
        )
        states = _states(episodes, paths) if episodes.has_states else None
        mixed = generator.permutation(len(paths))
        strangers = np.stack([np.arange(len(paths)), mixed])[
            :, paths.episode != paths.episode[mixed]
        ]

        isotropy, null = self._isotropy(encode(model, sample)[:, 0].float().cpu())
        std, rank = losses.spread(paths.latents)
        centred = (paths.latents - paths.latents.mean(dim=0)).double()
        spectrum = (
            torch.linalg.eigvalsh(centred.T @ centred / len(centred))
            .flip(0)
            .clamp_min(0.0)
            .cpu()
            .numpy()
        )
        costs: dict[str, Distance] = {
            "l2": lambda first, second: (first - second).square().sum(dim=-1)
        }
        if head := run.heads.get("temporal"):
            costs["temporal"] = head.distance  # type: ignore[assignment]
        own = None if run.planning is None else run.planning.objective
        if own is not None and (name := plugin_name(own)) not in ("l2", "temporal"):
            asked = own.asking(model) if isinstance(own, Asking) else own
            costs[name] = lambda first, second: asked.cost(first[:, None, None], second)[:, 0]
        saturation, bands = {}, {}
        for name, cost in costs.items():
            apart = float(_paid(cost, paths, *strangers).mean())
            saturation[name], offsets, bands[name] = self._saturation(paths, cost, apart)
        scale = saturation["l2"].strangers / model.latent_dim
        open_loop = self._open_loop(model, paths, scale, generator)
        worse = [int(block) for block, found in open_loop.items() if found.gain[0] <= 0]
        of_states = None if states is None else _configuration(states, episodes)
        curve = _over_training(run)
        return GeometryResult(
            episodes=len(ids),
            frames=len(paths),
            gap=paths.gap,
            straightness=StraightPaths(
                **vars(self._straightness(paths, paths.latents)),
                random_encoder=self._control(paths, random[0].latents if random else None),
                pixels=self._control(paths, None, _pixel_turns(episodes, paths)),
                states=self._control(paths, of_states),
                curve=curve,
                curve_from="the training's log"
                if curve
                else "nothing: the training did not log it",
            ),
            isotropy=isotropy,
            latent_std=float(std),
            effective_rank=float(rank),
            latent_dim=model.latent_dim,
            dims_99=int(np.searchsorted(spectrum.cumsum(), 0.99 * spectrum.sum()) + 1),
            **self._ranks(paths, costs, *_surroundings(run, states), generator),
            saturation=saturation,
            open_loop=open_loop,
            open_loop_not_better_from=worse[0] if worse else None,
            spectrum=spectrum,
            std=centred.square().mean(dim=0).sqrt().cpu().numpy(),
            null=null,
            offsets=offsets,
            costs=bands,
        )

    def _long_enough(self, run: Run) -> list[int]:
        """Held-out episodes that hold a path with a turn, a context of the model and a block to
        predict."""
        episodes, frames = run.episodes, max(3, run.model.context + 1)
        rows = (frames - 1) * rows_of_block(run.model, episodes) + 1
        run.require_episodes(0, FEWEST_GROUPS, "an interval over episodes")
        fit = [int(i) for i in run.test_ids if episodes.lengths[i] >= rows]
        if len(fit) < FEWEST_GROUPS:
            raise Unsupported(
                f"{episodes.path}: expected at least {FEWEST_GROUPS} held-out episodes of {rows} "
                f"rows or more, so that each holds {frames} frames one action block apart, got "
                f"{len(fit)}. Collect longer episodes."
            )
        return sorted(np.random.default_rng(self.seed).permutation(fit)[: self.episodes].tolist())

    def _straightness(
        self, paths: Paths, points: Tensor | None, turns: np.ndarray | None = None
    ) -> Straightness:
        """Mean cosine of the turns of (F, d) points, or of given ones, and the share of those at
        which nothing moved."""
        if turns is None:
            assert points is not None
            still = (
                losses.STILL
                * points.diff(dim=0)[paths.followed(1)].square().sum(dim=-1).mean().sqrt()
            )
            turns = losses.turns(points, still)[paths.followed(2)].double().cpu().numpy()
        moving = np.isfinite(turns)
        n, still_share = int(moving.sum()), float(1 - moving.mean())
        if not n:
            return Straightness(None, None, n, still_share)
        groups = paths.episode[paths.followed(2)][moving]
        value = float(turns[moving].mean())
        return Straightness(value, self._interval(turns[moving], groups), n, still_share)

    def _control(
        self, paths: Paths, points: Tensor | None, turns: np.ndarray | None = None
    ) -> Straightness | None:
        """The same, or None where nothing is known or nothing moves."""
        if points is None and turns is None:
            return None
        found = self._straightness(paths, points, turns)
        return found if found.n else None

    def _isotropy(self, sample: Tensor) -> tuple[Isotropy, np.ndarray]:
        """Compare (n, D) independent latents with Gaussian samples of that size; the statistics of
        these as well."""
        n, D = sample.shape
        generator = torch.Generator().manual_seed(self.seed)
        directions = draw_directions(D, self.slices, generator)
        portions = torch.arange(self.gaussians).split(
            max(1, PROJECTIONS_AT_ONCE // (n * self.slices))
        )
        drawn = [
            _moments(torch.randn(len(part), n, D, generator=generator), directions)
            for part in portions
        ]
        null = {
            name: torch.cat([each[name] for each in drawn]).double().numpy() for name in drawn[0]
        }
        found = {name: float(value) for name, value in _moments(sample[None], directions).items()}
        bands = {name: interval(np.quantile(null[name], (0.025, 0.975))) for name in null}
        # one-sided: no direction is too Gaussian
        worst_high = float(np.quantile(null["worst"], 0.95))
        low, high = bands["statistic"]
        return Isotropy(
            n=n,
            statistic=found["statistic"],
            null_low=low,
            null_high=high,
            null_mean=float(null["statistic"].mean()),
            inside=low <= found["statistic"] <= high,
            worst=found["worst"],
            worst_null_high=worst_high,
            worst_inside=found["worst"] <= worst_high,
            **{name: Moment(found[name], bands[name]) for name in ("std", "skewness", "kurtosis")},
        ), null["statistic"]

    def _ranks(
        self,
        paths: Paths,
        costs: Mapping[str, Distance],
        where: np.ndarray | None,
        regions: np.ndarray | None,
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        """Spearman's rho of each cost with steps-to-go and with the distance of the states, over
        pairs up to each offset; None for what is not known here."""
        known = {"ranks": True, "ranks_states": where, "ranks_across": regions}
        told: dict[str, Any] = {
            kind: None if of is None else {name: {} for name in costs} for kind, of in known.items()
        }
        for bound in self.offsets:
            if not paths.gap <= bound <= paths.gap * paths.reach(FEWEST_GROUPS):
                continue
            first, second = paths.pairs(bound // paths.gap, self.pairs, generator)
            steps, everywhere = (second - first).astype(np.float64), np.full(len(first), True)
            of = {"ranks": (steps, everywhere)}
            if where is not None:
                of["ranks_states"] = (
                    np.linalg.norm(where[first] - where[second], axis=1),
                    everywhere,
                )
            if regions is not None:
                of["ranks_across"] = steps, regions[first] != regions[second]
            for name, cost in costs.items():
                paid = _paid(cost, paths, first, second)
                for kind, (target, kept) in of.items():
                    told[kind][name][str(bound)] = self._rho(
                        paid[kept], target[kept], paths.episode[first[kept]]
                    )
        return told

    def _rho(self, cost: np.ndarray, target: np.ndarray, groups: np.ndarray) -> Rank:
        n, episodes = len(cost), len(np.unique(groups))
        if episodes < FEWEST_GROUPS or np.ptp(target) <= 0 or np.ptp(cost) <= 0:
            return Rank(None, None, n, episodes)
        ends = bootstrap(
            rank_correlation, cost, target, groups=groups, draws=self.draws, seed=self.seed
        )
        return Rank(rank_correlation(cost, target), ends, n, episodes)

    def _saturation(
        self, paths: Paths, cost: Distance, strangers: float
    ) -> tuple[Saturation, np.ndarray, Band]:
        """Where a cost stops growing with the offset; the offsets, its mean at each of them, and
        the band of that."""
        reach = min(paths.reach(FEWEST_GROUPS), max(1, self.offsets[-1] // paths.gap))
        _, place = np.unique(paths.episode, return_inverse=True)
        sums, counts = np.zeros((2, place.max() + 1, reach))
        for by in range(1, reach + 1):
            first = paths.followed(by)
            np.add.at(sums[:, by - 1], place[first], _paid(cost, paths, first, first + by))
            np.add.at(counts[:, by - 1], place[first], 1)
        drawn = np.random.default_rng(self.seed).integers(len(sums), size=(self.draws, len(sums)))
        curves = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1)
        mean, offsets = sums.sum(axis=0) / counts.sum(axis=0), paths.gap * np.arange(1, reach + 1)
        low, high = np.quantile(curves, (0.025, 0.975), axis=0)
        reached = [_saturates(curve, offsets) for curve in curves]
        first, last = np.quantile(reached, (0.025, 0.975), method="nearest").tolist()
        told = Saturation(
            offset=_saturates(mean, offsets),
            interval=(first, last),
            linear=_saturates(offsets, offsets),
            plateau=_plateau(mean),
            strangers=strangers,
        )
        return told, offsets, Band(mean, low, high)

    def _open_loop(
        self, model: WorldModel, paths: Paths, scale: float, generator: np.random.Generator
    ) -> dict[str, Ahead]:
        """Squared error per dimension of predictions 1 to H blocks ahead, beside that of no
        change."""
        K = model.context
        H = min(self.horizon, paths.reach(FEWEST_GROUPS) - K + 1)
        oldest = paths.followed(K - 1 + H)
        now = oldest[paths.some(oldest, self.rollouts, generator)] + K - 1
        context, truth = (
            paths.latents[now[:, None] + np.arange(*ends)] for ends in ((1 - K, 1), (1, H + 1))
        )
        past, ahead = (
            paths.blocks[now[:, None] + np.arange(*ends)] for ends in ((1 - K, 0), (0, H))
        )
        with torch.no_grad():
            predicted = model.rollout(context, past, ahead[:, None])[:, 0].float()
        groups = paths.episode[now]
        error, copy = (
            (guess - truth).square().mean(dim=-1).double().cpu().numpy()
            for guess in (predicted, context[:, -1:])
        )
        return {
            str(h + 1): Ahead(
                error=float(error[:, h].mean()),
                interval=self._interval(error[:, h], groups),
                copy=float(copy[:, h].mean()),
                copy_interval=self._interval(copy[:, h], groups),
                gain=self._interval(copy[:, h] - error[:, h], groups),
                n=len(now),
                random=scale,
            )
            for h in range(H)
        }

    def _interval(self, values: np.ndarray, groups: np.ndarray) -> Interval:
        return bootstrap_mean(values, groups, self.draws, seed=self.seed)


def _states(episodes: Episodes, paths: Paths) -> np.ndarray:
    """(F, S) true states."""
    of = {i: paths.rows[paths.episode == i] - episodes.offsets[i] for i in np.unique(paths.episode)}
    return np.concatenate([episodes.states(int(i))[steps] for i, steps in of.items()])


def _configuration(states: np.ndarray, episodes: Episodes) -> Tensor:
    """(F, s) where everything is: all state variables but velocities, angles as cosine and sine, in
    standard deviations."""
    units = episodes.provenance.state_units
    units = units if len(units) == states.shape[1] else ("",) * states.shape[1]
    columns = []
    for column, unit in zip(states.astype(np.float64).T, units, strict=True):
        if not unit.endswith("/s"):
            columns += [np.cos(column), np.sin(column)] if unit == "rad" else [column]
    centred = np.stack(columns or [np.zeros(len(states))], axis=1)
    centred = centred - centred.mean(axis=0)
    return torch.from_numpy(centred / np.maximum(centred.std(axis=0), 1e-9))


def _surroundings(
    run: Run, states: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(F, s) configurations where states are known, and (F,) rooms where the world has some and can
    be opened here."""
    if states is None:
        return None, None
    regions = None
    if run.open_world is not None:
        with suppress(ImportError, ValueError):
            regions = run.open_world(1).regions(states)
    return _configuration(states, run.episodes).numpy(), regions


def _pixel_turns(episodes: Episodes, paths: Paths) -> np.ndarray:
    """Cosine of each turn of the pixels; NaN where they do not change."""
    of = (
        torch.from_numpy(episodes.rows("pixels", paths.rows[paths.episode == i]))
        for i in np.unique(paths.episode)
    )
    return torch.cat([losses.turns(pixels.flatten(1).float()) for pixels in of]).double().numpy()


def _over_training(run: Run) -> tuple[tuple[int, float], ...]:
    """Straightness of a few held-out paths as the training logged it."""
    logged = [
        (row["update"], row["straightness"])
        for row in run.metrics
        if row.get("straightness") is not None
    ]
    return tuple((int(update), float(value)) for update, value in logged if np.isfinite(value))


def _one_frame_each(episodes: Episodes, ids: np.ndarray, generator: np.random.Generator) -> Tensor:
    """(n, 1, 3, h, w): frames that are as independent as the episodes are."""
    rows = episodes.offsets[ids] + generator.integers(episodes.lengths[ids])
    return torch.from_numpy(episodes.rows("pixels", rows)).permute(0, 3, 1, 2)[:, None]


def _with_random_weights(model: WorldModel, sample: Tensor, seed: int) -> WorldModel:
    """The same model before its training, its batch norms set to what they see, as in training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = checkpoints.build_model(checkpoints.describe_model(model)).to(device_of(model))
    with recalibrating(fresh):
        encode(fresh, sample)
    return fresh


def _moments(samples: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """(R, n, D) samples, (D, M) directions -> (R,) numbers about each sample; means over its
    dimensions but for SIGReg's."""
    statistics = sigreg_per_slice(samples.transpose(0, 1), directions)
    std, mean = torch.std_mean(samples, dim=1, keepdim=True)
    unit = (samples - mean) / std.clamp_min(1e-9)
    return {
        "statistic": statistics.mean(dim=1),
        "worst": statistics.amax(dim=1),
        "std": std.mean(dim=(1, 2)),
        "skewness": unit.pow(3).mean(dim=1).abs().mean(dim=1),
        "kurtosis": unit.pow(4).mean(dim=1).mean(dim=1) - 3,
    }


def _paid(cost: Distance, paths: Paths, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return cost(paths.latents[first], paths.latents[second]).double().cpu().numpy()


def _plateau(curve: np.ndarray) -> float:
    return float(curve[-max(1, len(curve) // 4) :].mean())


def _saturates(curve: np.ndarray, offsets: np.ndarray) -> int:
    """The first offset at which the curve comes near its plateau."""
    return int(offsets[np.argmax(curve >= NEAR * _plateau(curve))])


def _told(value: float | None, interval: tuple[float, float] | None, digits: int = 3) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
