"""What does a latent say about the world? Linear read-outs of the true state from a frozen model's latents.

A probe that reads a variable well shows that the encoder keeps it, in a form that a linear map finds. It does not show that a
planner uses it: one-step predictions and probes may both look fine while planning fails, so a probe stands beside a success
rate and never in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lewm.contracts import Result, WorldModel
from lewm.data import Episodes
from lewm.latents import FRAMES_AT_ONCE, encode, require_evaluation_mode
from lewm.stats import bootstrap, pearson, r2

__all__ = ["Probe", "Probing", "fit_probe"]

STRENGTHS = tuple(10.0**exponent for exponent in range(-8, 3))
"""Ridge penalties that are tried, as multiples of the variance of a standardised latent."""

INNER_FOLDS = 5


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
        seed: of frames, folds and bootstrap.
    """

    fit_frames: int = 2048
    test_frames: int = 1024
    draws: int = 500
    seed: int = 0

    def run(self, model: WorldModel, episodes: Episodes, fit_ids: Sequence[int], test_ids: Sequence[int]) -> Result:
        """Probe every state variable.

        Args:
            model: in evaluation mode; it stays as it is.
            fit_ids: episodes to fit on; those that the model was trained on.
            test_ids: episodes to test on, which neither model nor probe saw. Whole episodes, because frames of one episode are
                near-duplicates of each other.

        Returns:
            Values: per variable its `unit` and `r`, `r2` and `rmse` (in that unit) with 95% intervals over test episodes;
            `plane_variance`, the share of the latents' variance that lies in their two principal directions. Arrays, one row
            per test frame: `latents`, `states`, `predictions`, `episodes`, and `plane`, the latents projected onto that plane;
            and what `Probe.of` needs.

        Raises:
            ValueError: the model is in training mode, the two sides share episodes, or the data have no states, or some that
                are not finite.
        """
        require_evaluation_mode(model)
        if shared := set(fit_ids) & set(test_ids):
            raise ValueError(
                f"a probe must be tested on episodes it was not fitted on, got {sorted(shared)[:5]} on both sides. "
                "Split the episodes."
            )
        generator = np.random.default_rng(self.seed)
        latents, states, groups = self._encoded(model, episodes, fit_ids, self.fit_frames, generator)
        probe = fit_probe(latents, states, groups, self.seed)
        latents, states, groups = self._encoded(model, episodes, test_ids, self.test_frames, generator)
        predictions = probe.predict(latents)
        names = episodes.state_names
        units = episodes.provenance.state_units
        if len(units) != len(names):  # a file of another project may have forgotten them
            units = ("",) * len(names)
        variables = {
            name: {"unit": unit, **self._scores(predictions[:, i], states[:, i], groups), "strength": float(probe.strengths[i])}
            for i, (name, unit) in enumerate(zip(names, units, strict=True))
        }
        plane, share = _principal_plane(latents)
        return Result(
            name="probing",
            values={
                "probe": "linear",
                "variables": variables,
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

    def _encoded(
        self, model: WorldModel, episodes: Episodes, ids: Sequence[int], count: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(F, D) latents, (F, S) states and (F,) episodes of frames drawn without replacement."""
        lengths = episodes.lengths[np.asarray(ids)]
        of = np.repeat(np.asarray(ids), lengths)
        rows = np.concatenate([episodes.offsets[i] + np.arange(n) for i, n in zip(ids, lengths, strict=True)])
        chosen = np.sort(generator.permutation(len(rows))[:count])
        rows, of = rows[chosen], of[chosen]
        parts = np.array_split(rows, -(-len(rows) // FRAMES_AT_ONCE))  # so that pixels are never all in memory
        pixels = (torch.from_numpy(episodes.rows("pixels", part)).permute(0, 3, 1, 2)[:, None] for part in parts)
        latents = [encode(model, frames)[:, 0].float().cpu().numpy() for frames in pixels]
        states = np.concatenate([episodes.states(int(i)) for i in ids])[chosen]
        return np.concatenate(latents).astype(np.float64), states.astype(np.float64), of

    def _scores(self, prediction: np.ndarray, target: np.ndarray, groups: np.ndarray) -> dict[str, object]:
        scores: dict[str, object] = {}
        statistics: dict[str, Callable[..., float]] = {"r": pearson, "r2": r2, "rmse": _rmse}
        for name, statistic in statistics.items():
            interval = bootstrap(statistic, prediction, target, groups=groups, draws=self.draws, seed=self.seed)
            scores |= {name: statistic(prediction, target), f"{name}_interval": list(interval)}
        return scores


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
