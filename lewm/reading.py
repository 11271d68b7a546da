"""Reading the true state from frames: which frames, their features, what is asked for, ridge regression, how well it went.

Whatever is read, whole episodes are resampled and held out, never single frames: those of one episode are near-duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Result, WorldModel
from lewm.data import Episodes
from lewm.hindsight import encode_paths
from lewm.latents import FRAMES_AT_ONCE, encode, require_evaluation_mode

__all__ = [
    "Features",
    "Probe",
    "Reading",
    "Rollouts",
    "errors",
    "features_of",
    "first_predictions",
    "fit_probe",
    "latent_features",
    "read",
    "readings_of",
    "roll_out",
    "sample_frames",
    "scores",
    "standardised",
    "steady_probe",
]

Features = Callable[[Tensor], Tensor]
"""(n, 3, h, w) uint8 pictures -> (n, D)."""

STRENGTHS = tuple(10.0**exponent for exponent in range(-8, 3))
"""Ridge penalties that are tried, as multiples of the variance of a standardised latent."""

INNER_FOLDS = 5

ROLLOUT_FRAMES, FIRST_PREDICTIONS = 2048, 32
"""Frames encoded for rollouts, at most; and episodes of which predictions choose the penalty of a steady probe."""

LEAST = 1e-12
"""Share of a variable's variance below which what is left of it is rounding."""

# ---------------------------------------------------------------------------------------------------------- frames


def sample_frames(
    episodes: Episodes, ids: Sequence[int], most: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(F,) rows of the file and the episode of each: frames drawn without replacement, in the order of the file."""
    lengths = episodes.lengths[np.asarray(ids)]
    of = np.repeat(np.asarray(ids), lengths)
    rows = np.concatenate([episodes.offsets[i] + np.arange(n) for i, n in zip(ids, lengths, strict=True)])
    chosen = np.sort(generator.permutation(len(rows))[:most])
    return rows[chosen], of[chosen]


def features_of(encoders: Mapping[str, Features], episodes: Episodes, rows: np.ndarray) -> dict[str, np.ndarray]:
    """(F,) rows -> (F, D) float64 features by each encoder; a picture is read once, and pictures are never all in memory."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for some in np.array_split(rows, -(-len(rows) // FRAMES_AT_ONCE)):
        pixels = torch.from_numpy(episodes.rows("pixels", some)).permute(0, 3, 1, 2)
        for name, encoder in encoders.items():
            parts[name].append(encoder(pixels).float().cpu().numpy())
    return {name: np.concatenate(part).astype(np.float64) for name, part in parts.items()}


def latent_features(model: WorldModel) -> Features:
    """The latents of a model, which is in evaluation mode and stays as it is."""
    return lambda pixels: encode(model, pixels[:, None])[:, 0]


# ------------------------------------------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class Reading:
    """A number that is read from a frame: a state variable as it is, or the cosine or sine of an angle.

    Attributes:
        name: its own.
        unit: its own, "" for cosine and sine.
        of, column: the state variable, and its place in the state.
        through: makes it of the state variable.
    """

    name: str
    unit: str
    of: str
    column: int
    through: Callable[[np.ndarray], np.ndarray] = np.asarray

    @property
    def error_unit(self) -> str:
        """Of `errors`: degrees for an angle."""
        return self.unit if self.through is np.asarray else "degrees"


def readings_of(episodes: Episodes) -> list[Reading]:
    """One per state variable; of an angle (unit rad), which has a seam, its cosine and its sine."""
    names, units = episodes.state_names, episodes.provenance.state_units
    if len(units) != len(names):  # a file of another project may have forgotten them
        units = ("",) * len(names)
    found: list[Reading] = []
    for i, (name, unit) in enumerate(zip(names, units, strict=True)):
        if unit == "rad":
            found += [Reading(f"cos {name}", "", name, i, np.cos), Reading(f"sin {name}", "", name, i, np.sin)]
        else:
            found.append(Reading(name, unit, name, i))
    return found


def read(episodes: Episodes, readings: Sequence[Reading], rows: np.ndarray) -> np.ndarray:
    """(F,) ascending rows -> (F, S) float64, what the readings ask for.

    Raises:
        ValueError: a state is not finite; its episode is named.
    """
    of = np.searchsorted(episodes.offsets, rows, side="right") - 1
    parts = [episodes.states(int(i))[rows[of == i] - episodes.offsets[i]] for i in np.unique(of)]
    states = np.concatenate(parts).astype(np.float64)
    return np.stack([reading.through(states[:, reading.column]) for reading in readings], axis=1)


def errors(readings: Sequence[Reading], predictions: np.ndarray, states: np.ndarray) -> dict[str, np.ndarray]:
    """Error of each state variable, in its unit; of an angle in degrees, the shorter way round.

    Args:
        predictions, states: (..., S) what was read and what is true.

    Returns:
        State variable -> (...,).
    """
    found: dict[str, np.ndarray] = {}
    for i, reading in enumerate(readings):
        if reading.through is np.cos:
            seen, true = (np.arctan2(values[..., i + 1], values[..., i]) for values in (predictions, states))
            found[reading.of] = np.degrees((seen - true + np.pi) % (2 * np.pi) - np.pi)
        elif reading.through is not np.sin:
            found[reading.of] = predictions[..., i] - states[..., i]
    return found


# ------------------------------------------------------------------------------------------------- ridge regression


@dataclass(frozen=True)
class Probe:
    """A fitted linear read-out of the state.

    Attributes:
        weights: (D, S).
        bias: (S,), in the units of the state, as are predictions.
        strengths: (S,) the ridge penalty that the inner folds chose for each variable.
    """

    weights: np.ndarray
    bias: np.ndarray
    strengths: np.ndarray

    def predict(self, latents: np.ndarray) -> np.ndarray:
        """(..., D) latents -> (..., S) states."""
        return latents @ self.weights + self.bias

    @classmethod
    def of(cls, result: Result) -> Probe:
        """The read-out with which an analysis made its result, from the arrays of its fields' names."""
        return cls(*(result.arrays[name] for name in ("weights", "bias", "strengths")))


def fit_probe(
    latents: np.ndarray,
    states: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
    judged_on: tuple[np.ndarray, np.ndarray] | None = None,
) -> Probe:
    """Fit ridge regressions from latents to each state variable, in closed form.

    Both sides are standardised, so that one grid of penalties suits every model and unit. The penalty of each variable is the
    one with the least squared error over inner folds, or on what it is to be judged on.

    Args:
        latents: (F, D).
        states: (F, S), finite.
        groups: (F,) the episode of each row. Folds hold out whole episodes: with neighbours of a test frame in the training
            fold, the weakest penalty would always win.
        seed: of the folds.
        judged_on: other (n, D) latents and their (n, S) states, which choose the penalty in place of the folds.

    Raises:
        ValueError: arrays of different lengths, or fewer than two episodes.

    Cost: one eigendecomposition of a (D, D) matrix per fold, whatever the number of penalties.
    """
    episodes = np.unique(groups)
    if not len(latents) == len(states) == len(groups) or len(episodes) < 2:
        raise ValueError(
            f"a probe needs latents, states and groups of one length, from 2 episodes or more; got lengths {len(latents)}, "
            f"{len(states)}, {len(groups)} and {len(episodes)} episodes. Give it more episodes."
        )
    x, x_mean, x_std = standardised(latents)
    y, y_mean, y_std = standardised(states)
    tried: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    if judged_on is not None:
        tried.append((x, y, (judged_on[0] - x_mean) / x_std, (judged_on[1] - y_mean) / y_std))
    else:
        for fold in np.array_split(np.random.default_rng(seed).permutation(episodes), min(INNER_FOLDS, len(episodes))):
            held = np.isin(groups, fold)
            tried.append((x[~held], y[~held], x[held], y[held]))
    squares = np.zeros((len(STRENGTHS), y.shape[1]))
    for fit_x, fit_y, held_x, held_y in tried:
        solutions = _ridge(fit_x, fit_y)
        squares += [np.square(held_x @ solutions(np.full(y.shape[1], s)) - held_y).sum(axis=0) for s in STRENGTHS]
    strengths = np.array(STRENGTHS)[squares.argmin(axis=0)]
    weights = _ridge(x, y)(strengths) / x_std[:, None] * y_std
    return Probe(weights, y_mean - x_mean @ weights, strengths)


def standardised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, mean and std per column; a column that never varies is left at 0 and not blown up."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 1e-9, std, 1.0)
    return (values - mean) / std, mean, std


def _ridge(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Prepare ridge regression of (F, S) on (F, D); the answer maps (S,) strengths to (D, S) weights."""
    spectrum, basis = np.linalg.eigh(x.T @ x / len(x))
    rotated = basis.T @ (x.T @ y) / len(x)
    return lambda strengths: basis @ (rotated / (np.maximum(spectrum, 0)[:, None] + strengths))


# -------------------------------------------------------------------------------------------------------- rollouts


@dataclass(frozen=True)
class Rollouts:
    """What a model predicts along the executed actions of recorded episodes, beside what came.

    Attributes:
        last: (n, D) latents of the last frames that the model was shown.
        predicted, encoded: (n, H, D) latents after each block, open loop, and those of the frames that came.
        rows: (n, H) of the file, those frames.
        groups: (n,) the episode of each.
    """

    last: np.ndarray
    predicted: np.ndarray
    encoded: np.ndarray
    rows: np.ndarray
    groups: np.ndarray


def roll_out(
    model: WorldModel, episodes: Episodes, ids: Sequence[int], horizon: int, most: int, seed: Sequence[int], fewest: int = 1
) -> Rollouts | None:
    """Roll a model out from wherever some episodes hold a context of K frames and the blocks that follow.

    Args:
        model: in evaluation mode; it stays as it is.
        horizon: blocks, where half of the episodes are as long.
        most: episodes, drawn at random; fewer where they are so long that it would be many frames.
        seed: of that drawing.
        fewest: episodes that must be long enough.

    Returns:
        None where they are not, or the rows of the file do not make blocks.
    """
    stride, rest = divmod(model.spec.frameskip, episodes.every)
    K, frames = model.context, 0
    chosen: list[int] = []
    for i in np.random.default_rng(seed).permutation(np.asarray(ids))[:most].tolist():
        frames += -(-int(episodes.lengths[i]) // max(stride, 1))
        if frames > ROLLOUT_FRAMES and len(chosen) >= fewest:
            break
        chosen.append(i)
    if rest or len(chosen) < fewest:
        return None
    paths = encode_paths(model, episodes, sorted(chosen))
    horizon = min(horizon, paths.reach(max(fewest, len(chosen) // 2)) - (K - 1))
    if horizon < 1:
        return None
    first = paths.followed(K - 1 + horizon)
    context = paths.latents[first[:, None] + np.arange(K)]
    blocks = paths.blocks[first[:, None] + np.arange(K - 1 + horizon)][:, None]
    parts = zip(context.split(FRAMES_AT_ONCE), blocks.split(FRAMES_AT_ONCE), strict=True)
    with torch.no_grad():
        predicted = [model.rollout(seen, done[:, 0, : K - 1], done[:, :, K - 1 :])[:, 0] for seen, done in parts]
    following = first[:, None] + K + np.arange(horizon)
    return Rollouts(
        last=_float64(context[:, -1]),
        predicted=_float64(torch.cat(predicted)),
        encoded=_float64(paths.latents[following]),
        rows=paths.rows[following],
        groups=paths.episode[first],
    )


def steady_probe(
    model: WorldModel, episodes: Episodes, ids: Sequence[int], readings: Sequence[Reading], most: int = 2048, seed: int = 0
) -> Probe:
    """Fit a ridge probe that reads predicted latents as well as encoded ones: for whoever shows what a model imagines.

    Inner folds choose penalties so weak that a probe reads directions in which latents hardly vary, and there a prediction is
    rough: after a single block of Two-Room such a probe was 27 px off, and this one 5.

    Args:
        ids: episodes to fit on.
        most: frames to fit on.

    Raises:
        ValueError: fewer than two episodes, a model in training mode, or no true state.
    """
    require_evaluation_mode(model)
    rows, groups = sample_frames(episodes, ids, most, np.random.default_rng(seed))
    latents = features_of({"latents": latent_features(model)}, episodes, rows)["latents"]
    ahead = first_predictions(model, episodes, ids, readings, seed)
    return fit_probe(latents, read(episodes, readings, rows), groups, seed, ahead)


def first_predictions(
    model: WorldModel, episodes: Episodes, ids: Sequence[int], readings: Sequence[Reading], seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """(n, D) latents predicted one block ahead, and the (n, S) readings of the frames that came: a probe's penalty is to suit
    the roughness of predictions, not all that a model does not know of the future. None as in `roll_out`."""
    ahead = roll_out(model, episodes, ids, 1, FIRST_PREDICTIONS, (seed, 1))
    return None if ahead is None else (ahead.predicted[:, 0], read(episodes, readings, ahead.rows[:, 0]))


def _float64(latents: Tensor) -> np.ndarray:
    return latents.cpu().numpy().astype(np.float64)


# ---------------------------------------------------------------------------------------------------------- scores


def scores(
    predictions: np.ndarray, states: np.ndarray, groups: np.ndarray, draws: int = 500, seed: int = 0
) -> list[dict[str, float | list[float]]]:
    """How well each variable was read, with 95% bootstrap intervals over episodes.

    The intervals are those of `stats.bootstrap` with `stats.pearson`, `stats.r2` and so on, from sums per episode: of 60
    variables in milliseconds.

    Args:
        predictions, states: (F, S).
        groups: (F,) the episode of each row.

    Returns:
        Per variable `r`, `r2`, `mse` and `rmse`, each with its `_interval` [low, high]; NaN where one side never varies.
    """
    target, mean, std = standardised(states)
    guess = (predictions - mean) / std
    ones = np.ones_like(target)
    terms = np.stack([ones, guess, target, guess**2, target**2, guess * target, (guess - target) ** 2], axis=1)
    _, place = np.unique(groups, return_inverse=True)
    sums = np.zeros((place.max() + 1, *terms.shape[1:]))
    np.add.at(sums, place, terms)
    n = len(sums)
    drawn = np.random.default_rng(seed).integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)  # that an episode is in a resample
    found = _statistics(sums.sum(axis=0)[None], std)
    resampled = _statistics(np.tensordot(times, sums, axes=1), std)
    told: list[dict[str, float | list[float]]] = [{} for _ in std]
    for name, values in found.items():
        undefined = np.isnan(resampled[name]).all(axis=0)
        ends = np.nanquantile(np.where(undefined, 0.0, resampled[name]), [0.025, 0.975], axis=0)
        for k, row in enumerate(told):
            interval = [float("nan")] * 2 if undefined[k] else ends[:, k].tolist()
            row |= {name: float(values[0, k]), f"{name}_interval": interval}
    return told


def _statistics(sums: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """(n, 7, S) sums of standardised values -> (n, S) each."""
    guess, target, guesses, targets, products, squares = np.moveaxis(sums[:, 1:] / sums[:, :1], 1, 0)
    spread = np.maximum(targets - target**2, 0)
    width = np.maximum(guesses - guess**2, 0)
    mse = squares * std**2
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(np.minimum(width, spread) > LEAST, (products - guess * target) / np.sqrt(width * spread), np.nan)
        r2 = np.where(spread > LEAST, 1 - squares / spread, np.nan)
    return {"r": r, "r2": r2, "mse": mse, "rmse": np.sqrt(mse)}
