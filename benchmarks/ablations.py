"""The rows of LOG.md: the tiny recipe over seeds, and what happens to it when one ingredient is taken out.

    python -m lewm.benchmarks.ablations --out runs/ablations --seeds 0 1 2 --variants base lambda-0 no-batch-norm

Each row is trained, evaluated on held-out pairs and probed; finished rows are not repeated. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from lewm import checkpoints, recipes
from lewm.analyses.probing import Probing
from lewm.collection import collect, open_world
from lewm.evaluation import evaluate
from lewm.recipes import Experiment
from lewm.tasks import Protocol
from lewm.training import train

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "base": {},
    "lambda-0": {"model": {"sigreg_weight": 0.0}},
    "no-batch-norm": {"model": {"projector_norm": False}},
    "stop-gradient": {"model": {"stop_gradient": True}},
    "plain-patches": {"model": {"overlap": False}},
    "learned-position": {"model": {"position": "learned", "overlap": False}},
}
COLUMNS = (
    "variant", "seed", "success", "strict", "random", "do-nothing", "straight line", "probe r x", "probe r y",
    "latent std", "effective rank", "prediction", "train s", "alarm",
)  # fmt: skip


def row(experiment: Experiment, variant: str, seed: int, out: Path, pairs: int) -> dict[str, Any]:
    """Train one variant on one seed's data and measure it; the numbers are kept in its run folder."""
    run = out / f"{variant}-{seed}"
    if (run / "row.json").exists():
        return checkpoints.read_json(run / "row.json")
    changes = VARIANTS[variant]
    model_config = dataclasses.replace(experiment.model, **changes.get("model", {}))
    config = dataclasses.replace(experiment.training, seed=seed, **changes.get("training", {}))
    data = out / f"episodes-{seed}.h5"
    collection = dataclasses.replace(experiment.collection, seed=seed)
    episodes = collect(experiment.world, data, image_size=experiment.image_size, **dataclasses.asdict(collection))
    started = time.perf_counter()
    train(model_config, config, data, run, experiment={"recipe": experiment.recipe, "world": experiment.world})
    seconds = time.perf_counter() - started
    model, split = checkpoints.load(run), checkpoints.read_json(run / checkpoints.EXPERIMENT)["split"]
    world = open_world(experiment.world, 128, image_size=experiment.image_size)
    result = evaluate(model, experiment.planning, world, episodes, split["heldout"], Protocol(episodes=pairs, seed=seed))
    probe = Probing(seed=seed).run(model, episodes, split["train"], split["heldout"]).values["variables"]
    lines = [json.loads(line) for line in (run / checkpoints.METRICS).read_text().splitlines()]
    last, alarms = lines[-1], sum("alarm" in line for line in lines)
    values = (
        variant, seed, str(result.score()), str(result.score(strict=True)),
        *(f"{result.score(floor).rate:.1%}" for floor in ("random", "do-nothing", "straight-line")),
        f"{probe['x']['r']:.4f}", f"{probe['y']['r']:.4f}", f"{last['latent_std']:.3g}", f"{last['effective_rank']:.2f}",
        f"{last['prediction']:.3g}", f"{seconds:.0f}", f"in {alarms} of {len(lines)} reports",
    )  # fmt: skip
    checkpoints.write_json(run / "row.json", dict(zip(COLUMNS, values, strict=True)))
    return checkpoints.read_json(run / "row.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--recipe", default="two-room-tiny")
    arguments = parser.parse_args()
    experiment = recipes.load(arguments.recipe)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for variant in arguments.variants:
        for seed in arguments.seeds:
            values = row(experiment, variant, seed, arguments.out, arguments.pairs)
            print(f"| {' | '.join(str(values[name]) for name in COLUMNS)} |", flush=True)


if __name__ == "__main__":
    main()
