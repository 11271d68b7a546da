"""What does a latent say about the world? Linear read-outs of the true state from a frozen model's latents.

A probe that reads a variable well shows that the encoder keeps it, in a form that a linear map finds. It does not show that a
planner uses it: one-step predictions and probes may both look fine while planning fails, so a probe stands beside a success
rate and never in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, ClassVar

import numpy as np
import torch

from lewm import checkpoints
from lewm.contracts import Result, WorldModel
from lewm.data import Episodes
from lewm.latents import FRAMES_AT_ONCE, device_of, encode, require_evaluation_mode
from lewm.stats import bootstrap, pearson, r2
from lewm.subject import Progress, Subject

__all__ = ["Probing", "Probe", "fit_probe"]  # the analysis first

STRENGTHS = tuple(10.0**exponent for exponent in range(-8, 3))
"""Ridge penalties that are tried, as multiples of the variance of a standardised latent."""

INNER_FOLDS = 5

MOST_MULTIPLIED = 16
"""State variables that are multiplied with each other for the control; the products of more would outnumber the frames."""


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
        """The read-out with which `Probing.run` made its result."""
        return cls(*(result.arrays[name] for name in ("weights", "bias", "strengths")))


def fit_probe(latents: np.ndarray, states: np.ndarray, groups: np.ndarray, seed: int = 0) -> Probe:
    """Fit ridge regressions from latents to each state variable, in closed form.

    Both sides are standardised, so that one grid of penalties suits every model and unit. The penalty of each variable is the
    one with the least squared error over inner folds.

    Args:
        latents: (F, D).
        states: (F, S), finite.
        groups: (F,) the episode of each row. Folds hold out whole episodes: with neighbours of a test frame in the training
            fold, the weakest penalty would always win.
        seed: of the folds.

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
    x, x_mean, x_std = _standardised(latents)
    y, y_mean, y_std = _standardised(states)
    errors = np.zeros((len(STRENGTHS), y.shape[1]))
    for fold in np.array_split(np.random.default_rng(seed).permutation(episodes), min(INNER_FOLDS, len(episodes))):
        held = np.isin(groups, fold)
        solutions = _ridge(x[~held], y[~held])
        errors += [np.square(x[held] @ solutions(np.full(y.shape[1], s)) - y[held]).sum(axis=0) for s in STRENGTHS]
    strengths = np.array(STRENGTHS)[errors.argmin(axis=0)]
    weights = _ridge(x, y)(strengths) / x_std[:, None] * y_std
    return Probe(weights, y_mean - x_mean @ weights, strengths)


@dataclass(frozen=True)
class Probing:
    """Fit linear probes on some episodes and test them on others.

    Attributes:
        fit_frames, test_frames: drawn at random from the episodes of either side, at most.
        draws: of the bootstrap over test episodes.
        seed: of frames, folds, bootstrap and the random encoder.
        controls: probe two rivals as well: the same encoder with random weights, and the other state variables with their
            squares and products. What they read, the picture or the data give away: it is no merit of training.
    """

    fit_frames: int = 2048
    test_frames: int = 1024
    draws: int = 500
    seed: int = 0
    controls: bool = False

    name: ClassVar[str] = "probing"
    question: ClassVar[str] = "What of the true state can be read from a latent?"

    def run(self, subject: Subject, progress: Progress = lambda *_: None) -> Result:
        """Probe every state variable.

        Args:
            subject: its `fit_ids` are fitted on, its `test_ids`, which neither model nor probe saw, tested on. Whole episodes,
                because frames of one episode are near-duplicates of each other.

        Returns:
            Values: per variable its `unit` and `r`, `r2` and `rmse` (in that unit) with 95% intervals over test episodes, and
            the `controls`' r; an angle (of unit rad) is probed as its cosine and its sine, and `angles` holds the mean absolute
            error in degrees of the angle that the two give, 90 being chance; `plane_variance`, the share of the latents'
            variance that lies in their two principal directions. Arrays, one row per test frame: `latents`, `states`,
            `predictions`, `episodes`, and `plane`, the latents projected onto that plane; and what `Probe.of` needs.

        Raises:
            ValueError: the model is in training mode, the two sides share episodes, or the data have no states, or some that
                are not finite.
        """
        model, episodes, fit_ids, test_ids = subject.model, subject.episodes, subject.fit_ids, subject.test_ids
        require_evaluation_mode(model)
        if shared := set(fit_ids) & set(test_ids):
            raise ValueError(
                f"a probe must be tested on episodes it was not fitted on, got {sorted(shared)[:5]} on both sides. "
                "Split the episodes."
            )
        generator = np.random.default_rng(self.seed)
        readings = _readings(episodes)
        fit_rows, fit_groups = self._frames(episodes, fit_ids, self.fit_frames, generator)
        rows, groups = self._frames(episodes, test_ids, self.test_frames, generator)
        fit_states, states = _read(episodes, readings, fit_rows), _read(episodes, readings, rows)
        fit_latents, latents = _encoded(model, episodes, fit_rows), _encoded(model, episodes, rows)
        probe = fit_probe(fit_latents, fit_states, fit_groups, self.seed)
        predictions = probe.predict(latents)
        variables: dict[str, dict[str, Any]] = {
            reading.name: {
                "unit": reading.unit,
                **self._scores(predictions[:, i], states[:, i], groups),
                "strength": float(probe.strengths[i]),
            }
            for i, reading in enumerate(readings)
        }
        if self.controls:
            random = _with_random_weights(model, self.seed)
            rival = fit_probe(_encoded(random, episodes, fit_rows), fit_states, fit_groups, self.seed)
            random_predictions = rival.predict(_encoded(random, episodes, rows))
            for i, reading in enumerate(readings):
                others = [k for k, other in enumerate(readings) if other.variable != reading.variable]
                variables[reading.name]["controls"] = {
                    "random encoder": {"r": pearson(random_predictions[:, i], states[:, i])},
                    "other variables": {"r": self._from_others(fit_states, states, fit_groups, others, i)},
                }
        plane, share = _principal_plane(latents)
        return Result(
            name="probing",
            values={
                "probe": "linear",
                "variables": variables,
                "angles": _angles(readings, predictions, states),
                "plane_variance": share,
                "fit_episodes": len(fit_ids),
                "test_episodes": len(np.unique(groups)),
                "test_frames": len(states),
            },
            arrays={
                "latents": latents,
                "states": states,
                "predictions": predictions,
                "episodes": groups,
                "plane": plane,
                "weights": probe.weights,
                "bias": probe.bias,
                "strengths": probe.strengths,
            },
        )

    def _frames(
        self, episodes: Episodes, ids: Sequence[int], count: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(F,) rows of the file and the episode of each: frames drawn without replacement, in the order of the file."""
        lengths = episodes.lengths[np.asarray(ids)]
        of = np.repeat(np.asarray(ids), lengths)
        rows = np.concatenate([episodes.offsets[i] + np.arange(n) for i, n in zip(ids, lengths, strict=True)])
        chosen = np.sort(generator.permutation(len(rows))[:count])
        return rows[chosen], of[chosen]

    def _from_others(
        self, fit_states: np.ndarray, states: np.ndarray, groups: np.ndarray, others: Sequence[int], target: int
    ) -> float:
        """Correlation of one variable with what the others say of it, 0 if there are none."""
        if not others:
            return 0.0
        mean, std = fit_states[:, others].mean(axis=0), np.maximum(fit_states[:, others].std(axis=0), 1e-9)
        features, test_features = (_quadratic((values[:, others] - mean) / std) for values in (fit_states, states))
        probe = fit_probe(features, fit_states[:, [target]], groups, self.seed)
        return pearson(probe.predict(test_features)[:, 0], states[:, target])

    def _scores(self, prediction: np.ndarray, target: np.ndarray, groups: np.ndarray) -> dict[str, object]:
        scores: dict[str, object] = {}
        statistics: dict[str, Callable[..., float]] = {"r": pearson, "r2": r2, "rmse": _rmse}
        for name, statistic in statistics.items():
            interval = bootstrap(statistic, prediction, target, groups=groups, draws=self.draws, seed=self.seed)
            scores |= {name: statistic(prediction, target), f"{name}_interval": list(interval)}
        return scores


@dataclass(frozen=True)
class _Reading:
    """What a probe is asked for: column `variable` of the state, as it is or through a function."""

    name: str
    unit: str
    variable: int
    through: Callable[[np.ndarray], np.ndarray] = np.asarray


def _readings(episodes: Episodes) -> list[_Reading]:
    """One per state variable; two per angle, in the places of the one."""
    names, units = episodes.state_names, episodes.provenance.state_units
    if len(units) != len(names):  # a file of another project may have forgotten them
        units = ("",) * len(names)
    readings: list[_Reading] = []
    for i, (name, unit) in enumerate(zip(names, units, strict=True)):
        if unit == "rad":
            readings += [_Reading(f"cos {name}", "", i, np.cos), _Reading(f"sin {name}", "", i, np.sin)]
        else:
            readings.append(_Reading(name, unit, i))
    return readings


def _read(episodes: Episodes, readings: Sequence[_Reading], rows: np.ndarray) -> np.ndarray:
    """(F,) rows -> (F, S) what the readings ask for."""
    states = _states(episodes, rows)
    return np.stack([reading.through(states[:, reading.variable]) for reading in readings], axis=1)


def _angles(readings: Sequence[_Reading], predictions: np.ndarray, states: np.ndarray) -> dict[str, float]:
    """Mean absolute error in degrees of each angle, read from its cosine and sine."""
    errors = {}
    for i, reading in enumerate(readings):
        if reading.through is np.cos:
            read, true = (np.arctan2(values[:, i + 1], values[:, i]) for values in (predictions, states))
            wrapped = (read - true + np.pi) % (2 * np.pi) - np.pi
            errors[reading.name.removeprefix("cos ")] = float(np.degrees(np.abs(wrapped)).mean())
    return errors


def _states(episodes: Episodes, rows: np.ndarray) -> np.ndarray:
    """(F, S) float64 ground truth of ascending rows; a row that is not finite is refused, naming its episode."""
    of = np.searchsorted(episodes.offsets, rows, side="right") - 1
    wanted = [episodes.states(int(i))[rows[of == i] - episodes.offsets[i]] for i in np.unique(of)]
    return np.concatenate(wanted).astype(np.float64)


def _encoded(model: WorldModel, episodes: Episodes, rows: np.ndarray) -> np.ndarray:
    """(F,) rows -> (F, D) float64 latents."""
    parts = np.array_split(rows, -(-len(rows) // FRAMES_AT_ONCE))  # so that pixels are never all in memory
    pixels = (torch.from_numpy(episodes.rows("pixels", part)).permute(0, 3, 1, 2)[:, None] for part in parts)
    return np.concatenate([encode(model, frames)[:, 0].float().cpu().numpy() for frames in pixels]).astype(np.float64)


def _with_random_weights(model: Any, seed: int) -> Any:
    """The same model, as it was before its training but for the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = checkpoints.build_model(checkpoints.describe_model(model))
    return fresh.to(device_of(model)).eval()


def _quadratic(x: np.ndarray) -> np.ndarray:
    """(F, n) -> (F, n + n (n+1) / 2): the columns, their squares and products; of very many columns, the columns alone."""
    if x.shape[1] > MOST_MULTIPLIED:
        return x
    products = [x[:, i] * x[:, j] for i, j in combinations_with_replacement(range(x.shape[1]), 2)]
    return np.column_stack([x, *products])


def _ridge(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Prepare ridge regression of (F, S) on (F, D); the answer maps (S,) strengths to (D, S) weights."""
    spectrum, basis = np.linalg.eigh(x.T @ x / len(x))
    rotated = basis.T @ (x.T @ y) / len(x)
    return lambda strengths: basis @ (rotated / (np.maximum(spectrum, 0)[:, None] + strengths))


def _standardised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, mean and std per column; a column that never varies is left at 0 and not blown up."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 1e-9, std, 1.0)
    return (values - mean) / std, mean, std


def _rmse(prediction: np.ndarray, target: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(prediction - target))))


def _principal_plane(latents: np.ndarray) -> tuple[np.ndarray, float]:
    """(F, 2) coordinates in the two directions of greatest variance, and their share of it; signs are arbitrary but fixed."""
    centred = latents - latents.mean(axis=0)
    spectrum, basis = np.linalg.eigh(centred.T @ centred)
    axes = basis[:, :-3:-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    return centred @ axes, float(spectrum[-2:].sum() / max(spectrum.sum(), 1e-12))
