"""LeWM's one knob by bisection.

Success over lambda is a noisy plateau, of which no edge can be bisected. Two signals are monotone
on log lambda, and a short training shows both:

- the lower edge: below it the latents have collapsed at the end of the run;
- the upper edge: above it the cloud is rounder than the world can fill. Predictions five blocks
  ahead err twice as much of the latents' variance as at three times the lower edge, or the
  effective rank is twice as large.

The answer is the geometric mean of the edges, and one full training confirms it. The paper says
that lambda can be bisected and gives no procedure; this one is ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewm.contracts import Report, check_numbers, silent
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.outcome import AGENT
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.book import Book
from lewm.experiments.experiment import Experiment
from lewm.experiments.methods import with_method
from lewm.experiments.pipeline import collect_episodes, open_recipe_world, seeded, train_model
from lewm.experiments.study import measures
from lewm.files import hold, read_json, write_json
from lewm.report.rivals import has_collapsed
from lewm.runs.run import open_run

__all__ = ["Search", "Tried", "Tuning", "tune_lambda"]

ABOVE_LOWER = 3.0
"""Times the lower edge: where latents are healthy, and with what the upper edge is compared."""

WORSE, ROUNDER = 2.0, 2.0
"""Times the open-loop error, and the effective rank, there: above that lambda is too large."""


@dataclass(frozen=True)
class Search:
    """How lambda is looked for.

    Attributes:
        low: where the edges are looked for, from here on.
        high: up to there.
        tolerance: factor to which each edge is found. Halving it costs one run an edge.
        updates: of each short training.
        pairs: of the confirming run's evaluation.
    """

    low: float = 1e-4
    high: float = 10.0
    tolerance: float = 2.0
    updates: int = 150
    pairs: int = 200

    def __post_init__(self) -> None:
        check_numbers(
            self, least={"updates": 1, "pairs": 1}, above={"low": 0, "high": 0, "tolerance": 1}
        )
        if self.low * self.tolerance >= self.high:
            raise ValueError(
                f"expected low and high more than a factor of {self.tolerance:g} apart, got "
                f"{self.low:g} and {self.high:g}. Widen them."
            )

    @property
    def grid(self) -> int:
        """Runs of a grid over the same range to the same tolerance, for one knob; k knobs take its
        k-th power."""
        return math.ceil(math.log(self.high / self.low) / math.log(self.tolerance)) + 1


@dataclass(frozen=True)
class Tried:
    """A short training.

    Attributes:
        weight: lambda.
        seed: of the training.
        collapsed: as `rivals.has_collapsed` judges.
        error: squared error five blocks ahead, as a share of what two strangers differ by.
        rank, std, probe_r: of held-out latents.
    """

    weight: float
    seed: int
    collapsed: bool
    error: float | None
    rank: float
    std: float
    probe_r: float | None


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        weight: lambda; None where everything collapsed.
        lower, upper: bracket of each edge, the side that collapsed first. The upper one is None if
            it was not met.
        tried: every short training, in order.
        repeated: lambdas above the lower edge that had collapsed all the same, and what a second
            seed said of them.
        confirmed: success of the full training, by task.
        grid: runs that a grid would have taken.
    """

    weight: float | None
    lower: tuple[float, float]
    upper: tuple[float, float] | None
    tried: tuple[Tried, ...]
    repeated: tuple[tuple[float, bool], ...]
    confirmed: dict[str, Any]
    grid: int

    @property
    def runs(self) -> int:
        """Short ones; the confirming one comes on top."""
        return len(self.tried)


Try = Callable[[float, int], Tried]
"""(lambda, seed) -> a short training."""

Told = Callable[[str], None]


def bisected(
    low: float, high: float, tolerance: float, is_low: Callable[[float], bool]
) -> tuple[float, float]:
    """Halve a bracket on a logarithmic axis until it is narrow.

    Args:
        is_low: monotone: true below the edge that is looked for.
    """
    while high / low > tolerance * (1 + 1e-9):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_low(middle) else (low, middle)
    return low, high


def search(how: Search, attempt: Try, seed: int, told: Told) -> Tuning:
    """Find both edges.

    Args:
        attempt: makes a short training.
        told: hears of each, and the bracket of an edge.
    """
    tried: list[Tried] = []

    def ask(weight: float, why: str, with_seed: int = seed) -> Tried:
        tried.append(attempt(weight, with_seed))
        told(f"{why}: {_said(tried[-1])}")
        return tried[-1]

    # below this edge latents collapse
    lower = bisected(
        how.low, how.high, how.tolerance, lambda weight: ask(weight, "lower edge").collapsed
    )
    told(f"the lower edge lies between {lower[0]:.3g} and {lower[1]:.3g}")
    if all(each.collapsed for each in tried):
        return Tuning(None, lower, None, tuple(tried), (), {}, how.grid)

    # above this one the cloud is rounder than the world can fill
    begin = min(ABOVE_LOWER * lower[1], how.high)
    healthy = ask(begin, "for comparison")
    upper = bisected(
        begin,
        how.high,
        how.tolerance,
        lambda weight: not _too_large(ask(weight, "upper edge"), healthy),
    )
    met = any(_too_large(each, healthy) for each in tried if each.weight > begin)
    where = f"lies between {upper[0]:.3g} and {upper[1]:.3g}" if met else "was not met"
    told(f"the upper edge {where}")

    # above the lower edge nothing should collapse: ask again of what did
    repeated = []
    for each in [one for one in tried if one.collapsed and one.weight >= lower[1]]:
        again = ask(each.weight, "not monotone, so another seed", seed + 1)
        repeated.append((each.weight, again.collapsed))

    weight = math.sqrt(lower[1] * upper[0]) if met else begin
    return Tuning(
        weight, lower, upper if met else None, tuple(tried), tuple(repeated), {}, how.grid
    )


def _too_large(one: Tried, healthy: Tried) -> bool:
    if one.collapsed:
        return False
    erring = None not in (one.error, healthy.error) and one.error > WORSE * healthy.error  # type: ignore[operator]
    return erring or one.rank > ROUNDER * healthy.rank


def _said(one: Tried) -> str:
    error = "-" if one.error is None else f"{one.error:.3g}"
    state = "collapsed" if one.collapsed else "alive"
    return (
        f"lambda {one.weight:.3g} is {state} (rank {one.rank:.2f}, std {one.std:.2g}, error "
        f"{error})"
    )


def tune_lambda(
    recipe: str,
    out: Path,
    how: Search = Search(),
    seed: int = 0,
    confirm: bool = True,
    report: Report = silent,
    told: Told = lambda line: None,
) -> Tuning:
    """Find lambda for a recipe's world, data and sizes. What was run before is not run again.

    Args:
        out: folder for the data and the runs.
        seed: of data and trainings.
        confirm: train fully with what was found, and evaluate.
        report: called as trainings proceed.
        told: hears of each run, and the bracket of an edge.

    Raises:
        ValueError: the recipe trains another model, or `out` holds another search.
        KeyboardInterrupt: Ctrl-C; what was complete stays.
    """
    with hold(out):
        experiment = with_method(seeded(recipes.load(recipe), seed), "lewm")
        claim = {"recipe": recipe, "seed": seed, **dataclasses.asdict(how)}
        Book.open(out / "tuning.json", claim)
        data = out / "episodes.h5"
        collect_episodes(experiment, data, report).close()

        def attempt(weight: float, with_seed: int) -> Tried:
            return _attempt(experiment, how, weight, with_seed, data, out, report)

        found = search(how, attempt, seed, told)
        if confirm and found.weight is not None:
            told(f"a full training with lambda {found.weight:.3g}")
            confirmed = _confirm(experiment, how, found.weight, seed, data, out, report)
            found = dataclasses.replace(found, confirmed=confirmed)
        write_json(out / "result.json", dataclasses.asdict(found))
        return found


def _weighted(experiment: Experiment, weight: float, seed: int) -> Experiment:
    replace = dataclasses.replace
    training = replace(experiment.training, seed=seed, holdout_seed=experiment.training.seed)
    return replace(
        experiment, model=replace(experiment.lewm, sigreg_weight=weight), training=training
    )


def _attempt(
    experiment: Experiment,
    how: Search,
    weight: float,
    seed: int,
    data: Path,
    out: Path,
    report: Report,
) -> Tried:
    """A short training, or what is known of it."""
    folder = out / f"lambda-{weight:.6g}-{seed}"
    if not (folder / "tried.json").exists():
        short = _weighted(experiment, weight, seed)
        often = min(how.updates, short.training.checkpoint_every)
        training = dataclasses.replace(short.training, updates=how.updates, checkpoint_every=often)
        train_model(dataclasses.replace(short, training=training), data, folder, report)
        run = open_run(folder, data, device="cpu")
        with run.episodes:
            told = measures(run, seed, report)
        floor = (told.get("probe_controls") or {}).get("random encoder")
        r, rank, std = told["probe_r"], told["effective_rank"], told["latent_std"]
        collapsed = has_collapsed(r, floor, rank, std)
        error = told["error_of_strangers"].get("5")
        made = Tried(weight, seed, collapsed, error, rank, std, r)
        write_json(folder / "tried.json", dataclasses.asdict(made))
    return Tried(**read_json(folder / "tried.json"))


def _confirm(
    experiment: Experiment,
    how: Search,
    weight: float,
    seed: int,
    data: Path,
    out: Path,
    report: Report,
) -> dict[str, Any]:
    """Success of a full training, by task."""
    full, folder = _weighted(experiment, weight, seed), out / "confirmed"
    if not (folder / "confirmed.json").exists():
        train_model(full, data, folder, report)
        run = open_run(folder, data, device="cpu")
        world = open_recipe_world(full, min(how.pairs, full.together))
        told = {}
        with run.episodes:
            assert run.planning is not None
            for offset in (25, 75):
                task = Task.along(offset, how.pairs, seed)
                score = evaluate(
                    run.model, run.planning, world, run.episodes, run.test_ids, task, (), report
                ).score(AGENT, strict=True)
                told[task.name] = {
                    "rate": score.rate,
                    "low": score.low,
                    "high": score.high,
                    "pairs": score.episodes,
                }
        write_json(folder / "confirmed.json", told)
    return read_json(folder / "confirmed.json")
