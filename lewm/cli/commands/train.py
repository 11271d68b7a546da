"""`lewm train RECIPE`: every field of the recipe's model and training is a flag, with the recipe's
value as its default."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

import lewm
from lewm import registry
from lewm.cli import console
from lewm.cli.flags import described
from lewm.contracts import Progress
from lewm.experiments import recipes
from lewm.experiments.experiment import Experiment
from lewm.experiments.methods import METHODS
from lewm.experiments.steps import world_of
from lewm.files import read_json, write_json
from lewm.planning.config import describe_planning
from lewm.runs import checkpoints
from lewm.training.train import train


def main(words: Sequence[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        _list_recipes()
    elif not words or words[0].startswith("-"):
        raise ValueError(
            "expected a recipe first: lewm train RECIPE --data FILE --out RUN. `lewm train "
            "--help` lists them."
        )
    else:
        tyro.cli(_command(recipes.load(words[0])), args=words[1:], prog=f"lewm train {words[0]}")


def _command(recipe: Experiment) -> Callable[..., None]:
    ModelFlags, TrainingFlags = described(recipe.model), described(recipe.training)

    def run(
        data: Path,
        out: Path,
        model: ModelFlags,  # type: ignore[valid-type]
        training: TrainingFlags,  # type: ignore[valid-type]
        world: str | None = None,
        image_size: int = recipe.image_size,
        json: Path | None = None,
    ) -> None:
        """Train a world model on an episode file. The same command continues an interrupted
        training.

        Args:
            data: episode file (HDF5).
            out: run folder, for weights, settings and metrics.
            model: what is trained.
            training: how it is trained.
            world: that the data are of, for evaluation. By default what the file says, which must
                then be the recipe's, or no world of ours, such as a gym: one.
            image_size: that the data must have.
            json: write the outcome there.
        """
        settings = type(recipe.model)(**vars(model)), type(recipe.training)(**vars(training))
        known = world_of(data, recipe.world, world, image_size)
        if settings[1].tensorboard and not any(
            map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))
        ):
            hint = registry._install_hint("tensorboard")
            raise ImportError(
                f"--training.tensorboard needs the package 'tensorboard'. {hint}",
                name="tensorboard",
            )
        origin = {"recipe": recipe.recipe, "world": known, "lewm": lewm.__version__}
        planning = describe_planning(recipe.planning)
        trained = False

        def report(progress: Progress) -> None:
            nonlocal trained
            trained = trained or progress.stage == "train"
            if trained and progress.note and not progress.metrics:
                console.say(f"{progress.note} of {out}")  # where it goes on
            bars.update(progress)

        try:
            with console.Bars() as bars:
                train(
                    *settings, data, out, experiment={**origin, "planning": planning}, report=report
                )
        except KeyboardInterrupt:
            newest = checkpoints.latest(out)
            kept = (
                f"Update {int(newest.name)} is kept in {out}, and the same command goes on from "
                "there."
                if newest
                else ""
            )
            raise KeyboardInterrupt(
                kept or "It had no checkpoint yet: the same command begins anew."
            ) from None
        if not trained:
            console.say(f"nothing to do: {out} was trained before")
        metrics = checkpoints.metrics(out)[-1]
        alarm = metrics.pop("alarm", "")
        budget = checkpoints.budget_in_words(read_json(out / checkpoints.EXPERIMENT))
        console.facts(metrics, title=f"{recipe.recipe} in {out}{f' ({budget})' if budget else ''}")
        if alarm:
            first = ", --model.sigreg-weight first" if hasattr(model, "sigreg_weight") else ""
            console.alarm(
                f"{alarm}. Plans of this model will fail: look at what it was trained with{first}."
            )
        if json:
            write_json(json, {"run": str(out), **origin, "metrics": metrics, "alarm": alarm})

    return run


def _list_recipes() -> None:
    console.say(
        "usage: lewm train RECIPE --data FILE --out RUN [OPTIONS]\n\n`lewm train RECIPE --help` "
        "explains every option. RECIPE+METHOD trains another model on the recipe's world: "
        f"{', '.join(METHODS)}.\n"
    )
    known = [recipes.load(name) for name in recipes.RECIPES]
    console.table(
        ("recipe", "hardware", "cost", "expect"),
        [(e.recipe, e.hardware, e.cost, e.expected) for e in known],
        4,
    )
