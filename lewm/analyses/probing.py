"""What does a latent say about the world? Read-outs of the true state from a frozen model's
latents, beside their controls.

A probe that reads a variable well shows that the encoder keeps it, and a linear one that it is kept
in plain sight. Neither shows that training put it there, which is why rivals are probed as well;
nor that a planner uses it, so a probe stands beside a success rate and never in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement, count, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lewm.analyses.probes.ridge import Probe, fit_probe
from lewm.analyses.probes.rollouts import Rollouts, first_predictions, roll_out
from lewm.analyses.probes.scores import Score, scores
from lewm.analyses.probes.targets import (
    LATENTS,
    Features,
    Reading,
    errors,
    features_of,
    latent_features,
    readings_of,
    sample_frames,
    standardised,
    state_targets,
)
from lewm.contracts import Described, Progress, Report, WorldModel, check_numbers, silent
from lewm.models.nn.frozen import device_of, require_evaluation_mode
from lewm.runs import checkpoints
from lewm.runs.results import Interval, Result, Tables, interval
from lewm.runs.run import Run
from lewm.stats import bootstrap_mean
from lewm.training.fit import FittingConfig, descend

__all__ = ["Probing", "ProbingResult"]  # the analysis first

FEWEST_FIT, FEWEST_TEST = 10, 4
"""Episodes. Five inner folds need two each to choose a penalty. Of three test episodes more than
one resample in forty is the same one three times, so the ends of a 95% interval would be the scores
of single episodes."""

MLP = FittingConfig(updates=600, batch_size=128, learning_rate=2e-3, weight_decay=0.3)
WIDTH, DEPTH, DROPOUT = 256, 2, 0.3
"""Of the MLP probe. So strong a decay and dropout because one network reads all variables: what is
not there to be read (a velocity in a single picture) would else be learnt by heart. Source: tried
on runs of all four worlds."""

THUMBNAIL_PX = 16
"""Height and width to which pictures are averaged for the control from pixels."""

MOST_MULTIPLIED = 16
"""State variables that are multiplied with each other for the control; the products of more would
outnumber the frames."""

READABLE = 0.5
"""R2 of an encoded frame below which a variable takes no part in the open-loop error of its unit:
what cannot be read at the start tells nothing of a rollout."""

Matrix = np.ndarray
"""(F, n) float64, a row per frame."""


@dataclass(frozen=True)
class Rival(Score):
    """What a ridge regression reads.

    Attributes:
        mlp: what a small network reads of the same; None where none was fitted.
    """

    mlp: Score | None


@dataclass(frozen=True)
class Variable(Rival):
    """A state variable, as it is read from the latents.

    Attributes:
        unit: of `rmse`.
        strength: of the ridge penalty.
        controls: what its rivals read, by name; "random encoder" and "pixels" have an MLP as well.
    """

    unit: str
    strength: float
    controls: Mapping[str, Rival]


@dataclass(frozen=True)
class Curve:
    """How far readings are off after each block of an open-loop rollout.

    Attributes:
        unit: of all; degrees for angles.
        rmse, rmse_interval: on predicted latents.
        encoded_rmse: the floor, the same probe on the latents of the frames that came.
        copy_rmse: its reading of the last frame that the model was shown, taken for a prediction.
    """

    unit: str
    rmse: tuple[float, ...]
    rmse_interval: tuple[Interval, ...]
    encoded_rmse: tuple[float, ...]
    copy_rmse: tuple[float, ...]


@dataclass(frozen=True)
class Alike(Curve):
    """The same, the root mean square over the variables of a unit that can be read at all."""

    variables: tuple[str, ...]


@dataclass(frozen=True)
class OpenLoop:
    """What a probe reads of predicted latents; nothing where the episodes are too short. It is
    fitted on encoded frames, but with the penalty that suits predictions: see
    `ridge.steady_probe`.

    Attributes:
        steps: env steps after each block.
        rollouts, episodes: how many were measured.
        variables: by state variable.
        units: by unit.
    """

    steps: tuple[int, ...] = ()
    rollouts: int = 0
    episodes: int = 0
    variables: Mapping[str, Curve] = field(default_factory=dict)
    units: Mapping[str, Alike] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbingResult(Result):
    """What the latents say about the world, with 95% intervals over test episodes.

    Attributes:
        variables: in the order of the columns of `states`. An angle (of unit rad) is probed as its
            cosine and its sine.
        angles, angles_interval: mean absolute error in degrees of each angle that its cosine and
            sine give, 90 being chance.
        mlp_angles, mlp_angles_interval: the same of the MLP; empty without one.
        rollout: what is read of predictions.
        place: numbers of the two readings that are most likely a place.
        plane_variance: share of the latents' variance that lies in their two principal directions.
        latents, states, predictions: (F, D), (F, S) and (F, S), a row per test frame.
        plane: (F, 2) the latents projected onto those directions.
        episodes: (F,) number of the episode of each.
        probe: the read-out.
    """

    variables: Mapping[str, Variable]
    angles: Mapping[str, float]
    angles_interval: Mapping[str, Interval]
    mlp_angles: Mapping[str, float]
    mlp_angles_interval: Mapping[str, Interval]
    rollout: OpenLoop
    place: tuple[int, ...]
    plane_variance: float
    fit_episodes: int
    fit_frames: int
    test_episodes: int
    test_frames: int
    latents: np.ndarray
    states: np.ndarray
    predictions: np.ndarray
    plane: np.ndarray
    episodes: np.ndarray
    probe: Probe

    name: ClassVar[str] = "probing"

    def tables(self) -> Tables:
        """Scores beside their controls, angles, and errors of rollouts."""
        over = f"{self.test_frames} frames of {self.test_episodes} held-out episodes"
        controls = any(row.controls for row in self.variables.values())
        fitted = f"Fitted on {self.fit_frames} frames of {self.fit_episodes} others." + (
            " Controls: r of ridge / MLP." if controls else ""
        )
        rows = [_probe_row(name, row) for name, row in self.variables.items()]
        tables = {f"What probes read from the latents of {over}. {fitted}": rows}
        if self.angles:
            caption = (
                f"Mean absolute error of angles in degrees, over {over}. Guessing gives 90 if all "
                "angles occur. 95% intervals."
            )
            tables[caption] = [self._angle_row(of) for of in self.angles]
        rollout = self.rollout
        if readable := [of for alike in rollout.units.values() for of in alike.variables]:
            caption = (
                "Error (RMSE) of what a ridge probe reads. First: after an open-loop rollout. "
                "Second: from the frame that came. Third: from the last frame before, taken for a "
                f"prediction. {rollout.rollouts} rollouts in {rollout.episodes} held-out episodes. "
                f"Only variables with an R2 of {READABLE} or more."
            )
            tables[caption] = [
                _rollout_row(of, rollout.variables[of], rollout.steps) for of in readable
            ]
        return tables

    def _angle_row(self, of: str) -> dict[str, Any]:
        told = {"angle": of}
        for probe, off, ends in (
            ("ridge", self.angles, self.angles_interval),
            ("MLP", self.mlp_angles, self.mlp_angles_interval),
        ):
            if of in off:
                low, high = ends[of]
                told[probe] = f"{off[of]:.1f} ({low:.1f} to {high:.1f})"
        return told


@dataclass(frozen=True)
class Probing:
    """Fit probes on some episodes and test them on others.

    Attributes:
        fit_frames, test_frames: drawn at random from the episodes of either side, at most.
        mlp: fit a small network beside every ridge regression.
        controls: probe three rivals as well: the same encoder with random weights; the pixels,
            averaged to 16 x 16 and reduced to as many principal components as a latent has numbers;
            and the other state variables with their squares and products. What they read, the
            picture or the data give away: it is no merit of training.
        rollouts: test episodes in which the model is rolled out as well, and what it predicts is
            read, at most; 0 for none.
        horizon: action blocks of a rollout, where the episodes are long enough.
        draws: of the bootstrap over test episodes.
        seed: of frames, episodes, folds, networks, bootstrap and the random encoder.
    """

    fit_frames: int = 2048
    test_frames: int = 1024
    mlp: bool = True
    controls: bool = True
    rollouts: int = 64
    horizon: int = 8
    draws: int = 500
    seed: int = 0

    name: ClassVar[str] = "probing"
    question: ClassVar[str] = (
        "What of the true state can be read from a latent, and from a predicted one?"
    )
    result: ClassVar[type[Result]] = ProbingResult

    def __post_init__(self) -> None:
        check_numbers(self, least={"fit_frames": 2, "test_frames": 1, "horizon": 1, "draws": 1})

    def run(self, run: Run, report: Report = silent) -> ProbingResult:
        """Probe every state variable.

        Args:
            run: its `fit_ids` are fitted on, its `test_ids`, which neither model nor probe saw,
                tested on. Whole episodes, because frames of one episode are near-duplicates of each
                other.

        Raises:
            Unsupported: the data have no states, or too few episodes.
            ValueError: the model is in training mode, the two sides share episodes, or a state is
                not finite.
        """
        model, episodes = run.model, run.episodes
        require_evaluation_mode(model)
        if shared := set(run.fit_ids) & set(run.test_ids):
            raise ValueError(
                "a probe must be tested on episodes it was not fitted on, got "
                f"{sorted(shared)[:5]} on both sides. Split the episodes."
            )
        run.require_states()
        run.require_episodes(FEWEST_FIT, FEWEST_TEST, "probes with an interval over episodes")
        encoders = {
            LATENTS: latent_features(model),
            **(self._rivals(model) if self.controls else {}),
        }
        done, stages = count(1), 1 + len(encoders) * (1 + self.mlp) + (self.rollouts > 0)

        def report_stage(note: str) -> None:
            report(Progress(self.name, next(done), stages, note))

        readings = readings_of(episodes)
        fit, test = _sides(run, readings, encoders, (self.fit_frames, self.test_frames), self.seed)
        report_stage(f"{len(fit.states)} and {len(test.states)} frames encoded")

        scored: dict[str, list[Rival]] = {}  # what is read from -> one per reading
        read: dict[str, Matrix] = {}  # by what -> the latents of the test frames
        probes = {
            source: fit_probe(x, fit.states, fit.groups, self.seed)
            for source, x in fit.features.items()
        }
        for source, features in test.features.items():
            ridge = probes[source].predict(features)
            of_mlp: Sequence[Score | None] = [None] * len(readings)
            of_ridge = self._scores(ridge, test)
            report_stage(f"ridge on {source}")
            if self.mlp:
                mlp = self._fit_mlp(fit.features[source], fit.states)(features)
                of_mlp = self._scores(mlp, test)
                report_stage(f"MLP on {source}")
            scored[source] = _rivalling(of_ridge, of_mlp)
            if source == "latents":
                read = {"angles": ridge} | ({"mlp_angles": mlp} if self.mlp else {})
        if self.controls and len({reading.of for reading in readings}) > 1:
            others = self._scores(self._from_others(readings, fit, test), test)
            scored["other variables"] = _rivalling(others, [None] * len(readings))
        variables, strengths = {}, probes["latents"].strengths
        for i, (reading, own) in enumerate(zip(readings, scored.pop("latents"), strict=True)):
            variables[reading.name] = Variable(
                **vars(own),
                unit=reading.unit,
                strength=float(strengths[i]),
                controls={rival: rows[i] for rival, rows in scored.items()},
            )
        rollout = OpenLoop()
        if self.rollouts:
            unread = {
                reading.of
                for reading in readings
                if (r2 := variables[reading.name].r2) is None or r2 < READABLE
            }
            rollout = self._rollout(run, readings, fit, unread)
            report_stage("predictions read")
        latents, probe = test.features["latents"], probes["latents"]
        plane, share = _principal_plane(latents)
        angles, angles_interval = self._angles(readings, read["angles"], test)
        mlp_angles, mlp_angles_interval = (
            self._angles(readings, read["mlp_angles"], test) if self.mlp else ({}, {})
        )
        return ProbingResult(
            variables=variables,
            angles=angles,
            angles_interval=angles_interval,
            mlp_angles=mlp_angles,
            mlp_angles_interval=mlp_angles_interval,
            rollout=rollout,
            place=_place(readings),
            plane_variance=share,
            fit_episodes=len(run.fit_ids),
            fit_frames=len(fit.states),
            test_episodes=len(np.unique(test.groups)),
            test_frames=len(test.states),
            latents=latents,
            states=test.states,
            predictions=probe.predict(latents),
            plane=plane,
            episodes=test.groups,
            probe=probe,
        )

    def _rivals(self, model: WorldModel) -> dict[str, Features]:
        """What else makes features of a picture. A model that cannot be described cannot be made
        anew with random weights."""
        rivals: dict[str, Features] = {}
        if isinstance(model, Described):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                fresh = checkpoints.build_model(checkpoints.describe_model(model))
            rivals["random encoder"] = latent_features(fresh.to(device_of(model)).eval())
        return {**rivals, "pixels": _thumbnails}

    def _fit_mlp(self, features: Matrix, states: Matrix) -> Callable[[Matrix], Matrix]:
        """One network for all readings, both sides standardised; the answer reads (n, S) from (n,
        D) features."""
        x, x_mean, x_std = standardised(features)
        y, y_mean, y_std = standardised(states)
        inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        with torch.random.fork_rng(devices=[]):  # for weights and dropout
            torch.manual_seed(self.seed)
            widths = [x.shape[1], *[WIDTH] * DEPTH]
            hidden = [
                part
                for pair in pairwise(widths)
                for part in (nn.Linear(*pair), nn.GELU(), nn.Dropout(DROPOUT))
            ]
            network = nn.Sequential(*hidden, nn.Linear(WIDTH, y.shape[1]))

            def loss(update: int) -> Tensor:
                batch = np.random.default_rng((self.seed, update)).integers(
                    len(x), size=MLP.batch_size
                )
                return nn.functional.mse_loss(network(inputs[batch]), targets[batch])

            descend(network, loss, MLP)

        def predict(features: Matrix) -> Matrix:
            with torch.no_grad():
                return (
                    network(torch.from_numpy((features - x_mean) / x_std).float()).double().numpy()
                    * y_std
                    + y_mean
                )

        return predict

    def _from_others(self, readings: Sequence[Reading], fit: _Side, test: _Side) -> Matrix:
        """Each reading as the other state variables give it away, squares and products included."""
        _, mean, std = standardised(fit.states)
        known, asked = ((side.states - mean) / std for side in (fit, test))
        found = np.empty_like(test.states)
        for i, reading in enumerate(readings):
            others = [k for k, other in enumerate(readings) if other.of != reading.of]
            probe = fit_probe(
                _quadratic(known[:, others]), fit.states[:, [i]], fit.groups, self.seed
            )
            found[:, [i]] = probe.predict(_quadratic(asked[:, others]))
        return found

    def _rollout(
        self, run: Run, readings: Sequence[Reading], fit: _Side, unread: set[str]
    ) -> OpenLoop:
        """What is read of predicted latents."""
        model, episodes = run.model, run.episodes
        rolled = roll_out(
            model,
            episodes,
            run.test_ids,
            self.horizon,
            self.rollouts,
            (self.seed, 2),
            FEWEST_TEST,
            run.seen,
        )
        if rolled is None:
            return OpenLoop()
        ahead = first_predictions(model, episodes, run.fit_ids, readings, self.seed, run.seen)
        probe = fit_probe(fit.features["latents"], fit.states, fit.groups, self.seed, ahead)
        off = _errors_of_rollouts(rolled, probe, run, readings)

        def curve(unit: str, of: Sequence[str]) -> Curve:
            squares = {
                what: np.mean([each[name] ** 2 for name in of], axis=0)
                for what, each in off.items()
            }
            ends = [
                bootstrap_mean(block, rolled.groups, self.draws, seed=self.seed)
                for block in squares["rmse"].T
            ]
            means = {
                what: tuple(np.sqrt(each.mean(axis=0)).tolist()) for what, each in squares.items()
            }
            return Curve(unit=unit, rmse_interval=tuple(map(interval, np.sqrt(ends))), **means)

        units = {reading.of: reading.error_unit for reading in readings}
        alike: dict[str, list[str]] = {}
        for of in (of for of in units if of not in unread):
            alike.setdefault(units[of], []).append(of)
        steps = model.spec.frameskip * np.arange(1, rolled.rows.shape[1] + 1)
        return OpenLoop(
            steps=tuple(steps.tolist()),
            rollouts=len(rolled.groups),
            episodes=len(np.unique(rolled.groups)),
            variables={of: curve(unit, [of]) for of, unit in units.items()},
            units={
                unit: Alike(**vars(curve(unit, names)), variables=tuple(names))
                for unit, names in alike.items()
            },
        )

    def _scores(self, predictions: Matrix, test: _Side) -> list[Score]:
        return scores(predictions, test.states, test.groups, self.draws, self.seed)

    def _angles(
        self, readings: Sequence[Reading], predictions: Matrix, test: _Side
    ) -> tuple[dict[str, float], dict[str, Interval]]:
        """Mean absolute error of each angle in degrees, and its interval."""
        turning = {reading.of for reading in readings if reading.through is np.cos}
        off = {
            of: np.abs(error)
            for of, error in errors(readings, predictions, test.states).items()
            if of in turning
        }
        ends = {
            of: bootstrap_mean(error, test.groups, self.draws, seed=self.seed)
            for of, error in off.items()
        }
        return {of: float(error.mean()) for of, error in off.items()}, ends


@dataclass(frozen=True)
class _Side:
    """Frames to fit on, or to test on.

    Attributes:
        features: by what they are made with, (F, D) each.
        states: (F, S) readings.
        groups: (F,) the episode of each.
    """

    features: dict[str, Matrix]
    states: Matrix
    groups: np.ndarray


def _sides(
    run: Run,
    readings: Sequence[Reading],
    encoders: Mapping[str, Features],
    most: tuple[int, int],
    seed: int,
) -> tuple[_Side, _Side]:
    """Fit and test."""
    generator, episodes = np.random.default_rng(seed), run.episodes
    frames = [
        sample_frames(episodes, ids, n, generator)
        for ids, n in zip((run.fit_ids, run.test_ids), most, strict=True)
    ]
    fit, test = (
        _Side(
            features_of(encoders, episodes, rows, run.seen),
            state_targets(episodes, readings, rows),
            groups,
        )
        for rows, groups in frames
    )
    if "pixels" in encoders:
        axes = _principal_axes(fit.features["pixels"], run.model.latent_dim)
        for side in (fit, test):
            side.features["pixels"] = side.features["pixels"] @ axes
    return fit, test


def _errors_of_rollouts(
    rolled: Rollouts, probe: Probe, run: Run, readings: Sequence[Reading]
) -> dict[str, dict[str, np.ndarray]]:
    """What was read, and state variable -> (n, H) errors."""
    frames, place = np.unique(rolled.rows, return_inverse=True)  # rollouts overlap
    states = state_targets(run.episodes, readings, frames)[place.reshape(rolled.rows.shape)]
    last = np.broadcast_to(rolled.last[:, None], rolled.encoded.shape)
    seen = {"rmse": rolled.predicted, "encoded_rmse": rolled.encoded, "copy_rmse": last}
    return {
        what: errors(readings, probe.predict(latents), states) for what, latents in seen.items()
    }


def _thumbnails(pixels: Tensor) -> Tensor:
    """(n, 3, h, w) uint8 -> (n, D) the pictures, averaged to at most 16 x 16."""
    return nn.functional.adaptive_avg_pool2d(
        pixels.float(), min(THUMBNAIL_PX, pixels.shape[-1])
    ).flatten(1)


def _principal_axes(features: Matrix, most: int) -> Matrix:
    """(F, n) -> (n, m) the directions of greatest variance, greatest first; signs are arbitrary but
    fixed."""
    centred = features - features.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :most]
    return axes * np.where(
        axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0
    )


def _principal_plane(latents: Matrix) -> tuple[Matrix, float]:
    """(F, 2) coordinates in the two directions of greatest variance, and their share of it."""
    centred = latents - latents.mean(axis=0)
    plane = centred @ _principal_axes(latents, 2)
    return plane, float(np.square(plane).sum() / max(np.square(centred).sum(), 1e-30))


def _quadratic(x: Matrix) -> Matrix:
    """(F, n) -> (F, n + n (n+1) / 2): the columns, their squares and products; of very many
    columns, the columns alone."""
    if x.shape[1] > MOST_MULTIPLIED:
        return x
    products = [x[:, i] * x[:, j] for i, j in combinations_with_replacement(range(x.shape[1]), 2)]
    return np.column_stack([x, *products])


def _place(readings: Sequence[Reading]) -> tuple[int, ...]:
    """Which two readings to draw a map by: the first x and its y, or else the first two."""
    names = [reading.name for reading in readings]
    for i, name in enumerate(names):
        if name.split()[-1:] == ["x"] and (partner := name[:-1] + "y") in names:
            return i, names.index(partner)
    return tuple(range(len(names)))[:2]


def _rivalling(ridge: Sequence[Score], mlp: Sequence[Score | None]) -> list[Rival]:
    return [Rival(**vars(of), mlp=other) for of, other in zip(ridge, mlp, strict=True)]


# ------------------------------------------------------------------------------------------- tables


def _probe_row(name: str, row: Variable) -> dict[str, Any]:
    low, high = row.r_interval or (math.nan, math.nan)
    told = {
        "variable": name,
        "unit": row.unit,
        "r, ridge": _four(row.r),
        "95%": f"{low:.4f} to {high:.4f}",
    }
    if row.mlp:
        told["r, MLP"] = _four(row.mlp.r)
    told |= {"R2": _four(row.r2), "RMSE": f"{row.rmse:.3g}"}
    for rival, score in row.controls.items():
        told[rival] = " / ".join(_four(each.r) for each in (score, score.mlp) if each)
    return told


def _four(value: float | None) -> str:
    """Four digits, or "nan"."""
    return f"{math.nan if value is None else value:.4f}"


def _rollout_row(of: str, row: Curve, steps: Sequence[int]) -> dict[str, Any]:
    told = {"variable": of, "unit": row.unit}
    for block in (k for k in range(len(steps)) if k + 1 in (1, 2, 4, 8, len(steps))):
        three = (each[block] for each in (row.rmse, row.encoded_rmse, row.copy_rmse))
        told[f"{steps[block]} steps"] = " / ".join(f"{each:.3g}" for each in three)
    low, high = row.rmse_interval[-1]
    return told | {f"95% at {steps[-1]}": f"{low:.3g} to {high:.3g}"}
