"""Attention, Mamba and Titans as the mixer of LeWM's predictor, at equal parameters, where one
frame does not say everything.

    python -m lewm.experiments.backbones --out runs/backbones --seeds 0 1 2

The world is Two-Room behind a curtain: a band of the picture, over the wall and the door, shows
nothing. Whoever walks through is out of sight for some blocks, so a model has to remember where it
went in and what was done since. Windows are 8 frames of 3 env steps and the context is all before
the last: every step of every window is trained.

A row is a mixer and a seed. It holds the open-loop error at 1, 5, 10 and 20 blocks beyond the
training window, success when each may plan as long as attention does, the work of a step, and the
parameters. Titans are rolled out twice: writing what they predict to their memory, and not. Rows
are kept in OUT and not repeated. Prints a Markdown table and writes OUT/backbones.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from lewm.analyses.economy import count_flops
from lewm.analyses.probes.rollouts import roll_out
from lewm.contracts import DataSpec, World, silent
from lewm.data.episodes import Episodes
from lewm.data.writing import EpisodeWriter
from lewm.evaluation.evaluate import evaluate
from lewm.evaluation.outcome import AGENT
from lewm.evaluation.tasks import Task
from lewm.experiments import recipes
from lewm.experiments.experiment import Experiment
from lewm.experiments.pipeline import collect_episodes, open_recipe_world, seeded
from lewm.files import hold, read_json, write_json
from lewm.models.lewm import LeWM
from lewm.models.nn.mixers import MIXERS, Recurrence
from lewm.planning.config import PlanningConfig, plain_search
from lewm.runs import checkpoints
from lewm.training.train import train

WINDOW, FRAMESKIP = 8, 3
"""Frames of a window, and env steps between them: episodes of 100 steps hold 20 blocks beyond."""

BEYOND = (1, 5, 10, 20)
"""Blocks beyond the training window at which the open-loop error is read."""

CURTAIN = (0.34, 0.66)
"""Where the curtain hangs, as shares of the picture's width: 72 px of 224 about the wall. The dot
is drawn some 20 px wide to either side, so all of it is hidden for about 30 px of its way: 6 blocks
at a walker's usual pace."""

CANDIDATES, HORIZON = 100, 5
PATHS = 64
"""Held-out episodes of which the open-loop error is a mean."""

OFFSETS = (25,)


class Curtained:
    """A world of which a band of columns cannot be seen; all else is the world's own."""

    def __init__(self, world: World) -> None:
        self._world, size = world, world.spec.image_size
        self.spec = dataclasses.replace(world.spec, look="curtain")
        self._columns = slice(*(round(share * size) for share in CURTAIN))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def render(self, states: np.ndarray | None = None) -> np.ndarray:
        """As of the world, with the curtain in front."""
        return self.hidden(self._world.render(states))

    def hidden(self, pixels: np.ndarray) -> np.ndarray:
        """(n, h, w, 3) pictures, grey where the curtain hangs."""
        pixels = pixels.copy()
        pixels[:, :, self._columns] = 128
        return pixels


def settings(recipe: str, seed: int, episodes: int | None, updates: int | None) -> Experiment:
    """A recipe with long windows, of which the model sees all that came before."""
    experiment = seeded(recipes.load(recipe), seed)
    replace = dataclasses.replace
    training = replace(experiment.training, window=WINDOW, frameskip=FRAMESKIP)
    collection = experiment.collection
    return replace(
        experiment,
        model=replace(cast(Any, experiment.model), context=WINDOW - 1),
        training=replace(training, updates=updates or training.updates),
        collection=replace(collection, episodes=episodes or collection.episodes),
    )


def row(experiment: Experiment, mixer: str, out: Path, pairs: int) -> dict[str, Any]:
    """Train one mixer and measure it; the numbers are kept in its run folder."""
    seed = experiment.training.seed
    run = out / f"{mixer}-{seed}"
    if (run / "row.json").exists():
        return read_json(run / "row.json")
    curtained = Curtained(open_recipe_world(experiment, experiment.together))
    world = cast(World, curtained)
    episodes = _collected(experiment, curtained, out / f"episodes-{seed}.h5")
    began = time.process_time()
    model_config = dataclasses.replace(cast(Any, experiment.model), predictor_mixer=mixer)
    train(
        model_config,
        experiment.training,
        episodes.path,
        run,
        experiment={"recipe": experiment.recipe, "curtain": list(CURTAIN)},
    )
    seconds = time.process_time() - began
    model = cast(LeWM, checkpoints.load(run))
    held_out = read_json(run / checkpoints.EXPERIMENT)["split"]["heldout"]
    like_attention = dataclasses.replace(model_config, predictor_mixer="attention")
    ms, attention_ms = step_ms(model, like_attention.build(model.spec).eval())
    as_many = CANDIDATES * attention_ms / ms if model.predictor.recurrent else CANDIDATES
    candidates = max(20, 2 * round(as_many / 2))
    measured: dict[str, Any] = {
        "mixer": mixer,
        "seed": seed,
        "recipe": experiment.recipe,
        "updates": experiment.training.updates,
        "parameters": sum(p.numel() for p in model.parameters()),
        "predictor_parameters": sum(p.numel() for p in model.predictor.parameters()),
        "mflop_per_step": step_mflop(model),
        "ms_per_step": ms,
        "attention_ms_per_step": attention_ms,
        "candidates": candidates,
        "cpu_seconds": seconds,
        **{name: checkpoints.metrics(run)[-1][name] for name in ("latent_std", "effective_rank")},
        "variants": {},
    }
    for variant in ("writing", "frozen") if mixer == "titans" else ("",):
        model.predictor.frozen_memory = variant == "frozen"
        measured["variants"][variant] = {
            "error": open_loop_error(model, episodes, held_out, seed),
            "success": {
                str(offset): _success(model, candidates, world, episodes, held_out, task)
                for offset in OFFSETS
                for task in [Task.along(offset, pairs, seed=seed)]
            },
        }
    write_json(run / "row.json", measured)
    return measured


def open_loop_error(
    model: LeWM, episodes: Episodes, held_out: list[int], seed: int
) -> dict[str, dict[str, float]]:
    """Mean squared error over the variance of latents, and over that of copying the last frame
    that was seen, at `BEYOND` blocks past the window that it was trained on.

    Raises:
        ValueError: the held-out episodes are too short.
    """
    horizon = max(BEYOND) + 1  # the first block leads to the last frame of such a window
    rolled = roll_out(model, episodes, held_out, horizon, PATHS, (seed, 2))
    if rolled is None or rolled.predicted.shape[1] < horizon:
        raise ValueError(
            f"expected held-out episodes of {(model.context + horizon) * model.spec.frameskip} env "
            "steps or more, got shorter ones. Collect longer ones."
        )
    seen = rolled.encoded[:, list(BEYOND)]
    wrong = np.square(rolled.predicted[:, list(BEYOND)] - seen).mean(axis=(0, 2))
    copied = np.square(rolled.last[:, None] - seen).mean(axis=(0, 2))
    variance = rolled.encoded.var(axis=(0, 1)).mean()
    return {
        "of_variance": {str(b): float(e / variance) for b, e in zip(BEYOND, wrong, strict=True)},
        "of_copying": {str(b): float(e) for b, e in zip(BEYOND, wrong / copied, strict=True)},
    }


def step_ms(*models: LeWM, repeats: int = 15) -> list[float]:
    """Fewest ms in which each model takes `CANDIDATES` sequences one block on, from a full context;
    by turns, so that what else the machine does is equally hard on all."""
    asked = [(m.engine(), _question(m.spec, m.context, m.latent_dim)) for m in models]
    fewest = [math.inf] * len(models)
    with torch.no_grad():
        for _ in range(repeats):
            for i, (engine, question) in enumerate(asked):
                began = time.perf_counter()
                engine(*question)
                fewest[i] = min(fewest[i], 1e3 * (time.perf_counter() - began) / HORIZON)
    return fewest


def step_mflop(model: LeWM) -> float:
    """MFLOP per candidate and block, from a full context: matrix products and recurrences."""
    engine, asked = model.engine(), _question(model.spec, model.context, model.latent_dim)
    with torch.no_grad():
        products = count_flops(lambda: engine(*asked)) / (CANDIDATES * HORIZON)
    plain = sum(part.flops for part in model.modules() if isinstance(part, Recurrence))
    return (products + plain) / 1e6


def as_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown, one line per row and variant."""
    heads = ["mixer", "seed", "parameters", "MFLOP/step", "ms/step", "N"]
    heads += [f"error at {b}" for b in BEYOND] + [f"offset {offset}" for offset in OFFSETS]
    lines = [heads, ["---"] * len(heads)]
    for found in rows:
        numbers = [f"{found['mflop_per_step']:.3g}", f"{found['ms_per_step']:.3g}"]
        for name, variant in found["variants"].items():
            errors = [f"{variant['error']['of_variance'][str(b)]:.3g}" for b in BEYOND]
            scores = [
                f"{s['rate']:.1%} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
                for s in variant["success"].values()
            ]
            lines.append(
                [
                    f"{found['mixer']} {name}".strip(),
                    str(found["seed"]),
                    f"{found['parameters']:,}",
                    *numbers,
                    str(found["candidates"]),
                    *errors,
                    *scores,
                ]
            )
    return [f"| {' | '.join(line)} |" for line in lines]


def main(say: Callable[[str], None]) -> None:
    """Do what the arguments ask for.

    Args:
        say: called with the lines of each row as it is known, and with the whole table.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/backbones"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--recipe", default="two-room-tiny")
    parser.add_argument("--episodes", type=int, help="collected, instead of the recipe's number")
    parser.add_argument("--updates", type=int, help="of training, likewise")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        experiment = settings(arguments.recipe, seed, arguments.episodes, arguments.updates)
        for mixer in arguments.mixers:
            with hold(arguments.out):
                rows.append(row(experiment, mixer, arguments.out, arguments.pairs))
                write_json(arguments.out / "backbones.json", {"rows": rows})
            say("\n".join(as_table(rows[-1:])[2:]))
    say("\n".join(as_table(rows)))


# ----------------------------------------------------------------------------------------- internal


def _collected(experiment: Experiment, world: Curtained, path: Path) -> Episodes:
    """The recipe's episodes, seen through the curtain."""
    open_air = path.with_name(f"open-{path.name}")
    with collect_episodes(experiment, open_air, silent) as seen:
        look = dataclasses.replace(seen.provenance, look=world.spec.look)
        with EpisodeWriter(path, look, experiment.collection.compression) as writer:
            for i in range(len(writer), len(seen)):
                episode = seen.episode(i)
                pixels = world.hidden(episode.pixels)
                writer.append(dataclasses.replace(episode, pixels=pixels))
    return Episodes.open(path)


def _success(
    model: LeWM, candidates: int, world: World, episodes: Episodes, held_out: list[int], task: Task
) -> dict[str, float]:
    score = evaluate(model, _planning(candidates), world, episodes, held_out, task, ()).score(
        AGENT, strict=True
    )
    return {"rate": score.rate, "low": score.low, "high": score.high, "pairs": score.episodes}


def _planning(candidates: int) -> PlanningConfig:
    """The plain search, with so many candidates and a tenth of them elites."""
    plain = plain_search()
    solver: Any = plain.solver
    fewer = {"num_candidates": candidates, "num_elites": max(2, candidates // 10)}
    return dataclasses.replace(plain, solver=dataclasses.replace(solver, **fewer))


def _question(spec: DataSpec, context: int, latent_dim: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, context, latent_dim, generator=g),
        torch.randn(1, context - 1, spec.block_dim, generator=g),
        torch.randn(1, CANDIDATES, HORIZON, spec.block_dim, generator=g),
    )


if __name__ == "__main__":
    main(partial(print, flush=True))
