"""What happens to a tiny recipe when one ingredient is changed or taken out; what `lewm claims`
reads beside the runs.

    python -m lewm.experiments.ablations --out runs/ablations --seeds 0 1 2 --variants base lambda-0
    no-batch-norm

Each variant is trained on its seed's data, evaluated on held-out pairs and probed; finished rows
are not repeated. Planning is the same plain search for all (latent L2, 100 candidates x 5), because
heads would hide what the latents lack. Prints a Markdown table and writes OUT/ablations.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lewm.analyses.probing import Probing
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.outcome import AGENT
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.experiment import Experiment
from lewm.experiments.pipeline import collect_episodes, open_recipe_world, seeded
from lewm.files import hold, read_json, write_json
from lewm.planning.config import plain_search
from lewm.runs import checkpoints
from lewm.runs.run import Run
from lewm.training.train import train

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "lambda-0": {"sigreg_weight": 0.0},
    "lambda-0.0001": {"sigreg_weight": 0.0001},
    "lambda-0.001": {"sigreg_weight": 0.001},
    "lambda-0.003": {"sigreg_weight": 0.003},
    "lambda-0.01": {"sigreg_weight": 0.01},
    "lambda-0.2": {"sigreg_weight": 0.2},
    "lambda-0.5": {"sigreg_weight": 0.5},
    "lambda-2": {"sigreg_weight": 2.0},
    "slices-64": {"sigreg_slices": 64},
    "slices-256": {"sigreg_slices": 256},
    "knots-5": {"sigreg_knots": 5},
    "knots-33": {"sigreg_knots": 33},
    "no-batch-norm": {"projector_norm": False},
    "no-zero-modulation": {"zero_modulation": False},
    "stop-gradient": {"stop_gradient": True},
    "plain-patches": {"overlap": False},
    "learned-position": {"position": "learned", "overlap": False},
    "one-dimension": {"latent_dim": 1},
    "two-dimensions": {"latent_dim": 2},
}
"""Name -> changes of the model's config."""

FAR = 75
"""Offset of the harder pairs: at 25 steps even a weak model of a tiny world may reach nearly
all."""


def row(experiment: Experiment, variant: str, seed: int, out: Path, pairs: int) -> dict[str, Any]:
    """Train one variant on one seed's data and measure it; the numbers are kept in its run
    folder."""
    run = out / f"{variant}-{seed}"
    if (run / "row.json").exists():
        return read_json(run / "row.json")
    experiment = seeded(experiment, seed)
    data = out / f"episodes-{seed}.h5"
    episodes = collect_episodes(experiment, data, lambda *_: None)
    model_config = dataclasses.replace(experiment.lewm, **VARIANTS[variant])
    started = time.perf_counter()
    train(
        model_config,
        experiment.training,
        data,
        run,
        experiment={"recipe": experiment.recipe, "world": experiment.world},
    )
    seconds = time.perf_counter() - started
    model, split = checkpoints.load(run), read_json(run / checkpoints.EXPERIMENT)["split"]
    world = open_recipe_world(experiment, experiment.together)
    scores: dict[str, Any] = {}
    for name, offset in (("success", 25), ("far", FAR)):
        protocol = Task.along(offset, pairs, seed=seed)
        score = evaluate(
            model, plain_search(), world, episodes, split["heldout"], protocol, ()
        ).score(AGENT, strict=True)
        scores[name] = {
            "rate": score.rate,
            "low": score.low,
            "high": score.high,
            "pairs": score.episodes,
        }
    probing = Probing(mlp=False, controls=False, rollouts=0, seed=seed)
    probe = probing.run(Run(model, episodes, split["train"], split["heldout"])).variables
    lines = checkpoints.metrics(run)
    measured = {
        "variant": variant,
        "changes": VARIANTS[variant],
        "recipe": experiment.recipe,
        "seed": seed,
        **scores,
        "probe_r": min(found.r or 0.0 for found in probe.values()),
        **{
            name: lines[-1][name]
            for name in ("latent_std", "effective_rank", "prediction", "copying", "sigreg")
        },
        "seconds": seconds,
        "alarms": sum("alarm" in line for line in lines),
        "reports": len(lines),
    }
    write_json(run / "row.json", measured)
    return measured


def as_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown, one line per row."""
    heads = [
        "variant",
        "seed",
        "success",
        f"offset {FAR}",
        "worst probe r",
        "latent std",
        "rank",
        "prediction",
        "of copying",
        "alarm",
    ]
    lines = [heads, ["---"] * len(heads)]
    for found in rows:
        rates = [
            f"{s['rate']:.1%} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
            for s in (found["success"], found["far"])
        ]
        numbers = [
            f"{found[name]:.4g}"
            for name in ("probe_r", "latent_std", "effective_rank", "prediction")
        ]
        relative = f"{found['prediction'] / found['copying']:.3g}"
        alarm = f"{found['alarms']} of {found['reports']}"
        lines.append([found["variant"], str(found["seed"]), *rates, *numbers, relative, alarm])
    return [f"| {' | '.join(line)} |" for line in lines]


def main(say: Callable[[str], None]) -> None:
    """Do what the arguments ask for.

    Args:
        say: called with each line of the table as it is known, and with the whole table.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--recipe", default="two-room-tiny")
    parser.add_argument("--episodes", type=int, help="collected, instead of the recipe's number")
    parser.add_argument("--updates", type=int, help="of training, likewise")
    arguments = parser.parse_args()
    experiment = recipes.load(arguments.recipe)
    if arguments.episodes:
        collection = dataclasses.replace(experiment.collection, episodes=arguments.episodes)
        experiment = dataclasses.replace(experiment, collection=collection)
    if arguments.updates:
        training = dataclasses.replace(experiment.training, updates=arguments.updates)
        experiment = dataclasses.replace(experiment, training=training)
    rows = []
    for seed in arguments.seeds:
        for variant in arguments.variants:
            with hold(arguments.out):
                rows.append(row(experiment, variant, seed, arguments.out, arguments.pairs))
                write_json(arguments.out / "ablations.json", {"rows": rows})
            say(as_table(rows)[-1])
    say("\n".join(as_table(rows)))


if __name__ == "__main__":
    main(partial(print, flush=True))
