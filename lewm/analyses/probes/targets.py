"""What a probe reads and from what: frames, their features, and the variables of the true state.

Frames are drawn from whole episodes: those of one episode are near-duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import WorldModel
from lewm.data.episodes import Episodes
from lewm.models.nn.frozen import FRAMES_AT_ONCE, encode
from lewm.runs.run import Seen

__all__ = [
    "LATENTS",
    "Features",
    "sample_frames",
    "features_of",
    "latent_features",
    "Reading",
    "readings_of",
    "state_targets",
    "errors",
    "standardised",
]


LATENTS = "latents"
"""What the features of the model itself are called; others are its rivals."""

Features = Callable[[Tensor], Tensor]
"""(n, 3, h, w) uint8 pictures -> (n, D)."""


def sample_frames(
    episodes: Episodes, ids: Sequence[int], most: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(F,) rows of the file and the episode of each: frames drawn without replacement, in the order
    of the file."""
    lengths = episodes.lengths[np.asarray(ids)]
    of = np.repeat(np.asarray(ids), lengths)
    rows = np.concatenate(
        [episodes.offsets[i] + np.arange(n) for i, n in zip(ids, lengths, strict=True)]
    )
    chosen = np.sort(generator.permutation(len(rows))[:most])
    return rows[chosen], of[chosen]


def features_of(
    encoders: Mapping[str, Features],
    episodes: Episodes,
    rows: np.ndarray,
    seen: Seen | None = None,
) -> dict[str, np.ndarray]:
    """(F,) rows -> (F, D) float64 features by each encoder; a picture is read once, and pictures
    are never all in memory.

    Args:
        seen: `LATENTS` that are known of these rows of these episodes; others are added.
    """
    known = {} if seen is None or LATENTS not in encoders else seen.frames
    if (kept := known.get(key := rows.tobytes())) is not None:
        others = {name: encoder for name, encoder in encoders.items() if name != LATENTS}
        found = features_of(others, episodes, rows) if others else {}
        return {name: kept if name == LATENTS else found[name] for name in encoders}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for some in np.array_split(rows, -(-len(rows) // FRAMES_AT_ONCE)):
        pixels = torch.from_numpy(episodes.rows("pixels", some)).permute(0, 3, 1, 2)
        for name, encoder in encoders.items():
            parts[name].append(encoder(pixels).float().cpu().numpy())
    made = {name: np.concatenate(part).astype(np.float64) for name, part in parts.items()}
    if LATENTS in made:
        known[key] = made[LATENTS]
    return made


def latent_features(model: WorldModel) -> Features:
    """The latents of a model, which is in evaluation mode and stays as it is."""
    return lambda pixels: encode(model, pixels[:, None])[:, 0]


@dataclass(frozen=True)
class Reading:
    """A number that is read from a frame: a state variable as it is, or the cosine or sine of an
    angle.

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
            found += [
                Reading(f"cos {name}", "", name, i, np.cos),
                Reading(f"sin {name}", "", name, i, np.sin),
            ]
        else:
            found.append(Reading(name, unit, name, i))
    return found


def state_targets(episodes: Episodes, readings: Sequence[Reading], rows: np.ndarray) -> np.ndarray:
    """(F,) ascending rows -> (F, S) float64, what the readings ask for.

    Raises:
        ValueError: a state is not finite; its episode is named.
    """
    of = np.searchsorted(episodes.offsets, rows, side="right") - 1
    parts = [episodes.states(int(i))[rows[of == i] - episodes.offsets[i]] for i in np.unique(of)]
    states = np.concatenate(parts).astype(np.float64)
    return np.stack([reading.through(states[:, reading.column]) for reading in readings], axis=1)


def errors(
    readings: Sequence[Reading], predictions: np.ndarray, states: np.ndarray
) -> dict[str, np.ndarray]:
    """Error of each state variable, in its unit; of an angle in degrees, the shorter way round.

    Args:
        predictions, states: (..., S) what was read and what is true.

    Returns:
        State variable -> (...,).
    """
    found: dict[str, np.ndarray] = {}
    for i, reading in enumerate(readings):
        if reading.through is np.cos:
            seen, true = (
                np.arctan2(values[..., i + 1], values[..., i]) for values in (predictions, states)
            )
            found[reading.of] = np.degrees((seen - true + np.pi) % (2 * np.pi) - np.pi)
        elif reading.through is not np.sin:
            found[reading.of] = predictions[..., i] - states[..., i]
    return found


def standardised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, mean and std per column; a column that never varies is left at 0 and not blown up."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 1e-9, std, 1.0)
    return (values - mean) / std, mean, std
