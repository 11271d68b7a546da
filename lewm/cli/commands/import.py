"""`lewm import`: make a run of published weights."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from lewm.cli import console
from lewm.experiments import recipes
from lewm.files import read_json, write_json
from lewm.runs import checkpoints
from lewm.runs.pieces import is_pieces, join_pieces
from lewm.runs.published import import_run


def main(words: Sequence[str]) -> None:
    tyro.cli(run, args=words, prog="lewm import")


def run(
    checkpoint: Positional[str],
    out: Path,
    data: Path | None = None,
    action_mean: tuple[float, ...] = (),
    action_std: tuple[float, ...] = (),
    world: str | None = None,
    json: Path | None = None,
) -> None:
    """Make a run of published weights, which every command that takes a run then accepts.

    Published weights lack the statistics that normalise actions. Give the data that they were
    trained on: the statistics are those of all its rows, as published. Or give the numbers. A
    statistics.json beside the weights, as `lewm export` writes it, goes before the data.

    Args:
        checkpoint: folder with weights.pt and config.json, or the .pt file itself, or hf:user/name
            to fetch both from the hub; or a folder of pieces that `lewm export --format pieces`
            wrote, which need nothing else.
        out: run folder to make.
        data: episode file; the run is used with it unless another is given.
        action_mean: of the actions, one number per dimension.
        action_std: likewise, the standard deviation.
        world: name of the world, such as push-t; by default what the data say.
        json: write what was imported there.
    """
    if is_pieces(Path(checkpoint)):
        _join(Path(checkpoint), out, json, data, action_mean, action_std, world)
        return
    papers = [recipes.load(name) for name in recipes.RECIPES if name.endswith("-paper")]
    plannings = {recipe.world: recipe.planning for recipe in papers}
    import_run(checkpoint, out, data, action_mean, action_std, world, plannings)
    experiment, model = read_json(out / checkpoints.EXPERIMENT), checkpoints.load(out)
    imported, spec = experiment["imported"], model.spec
    facts = {
        "weights": (
            f"{imported['dialect']} dialect, {sum(p.numel() for p in model.parameters()):,} "
            "parameters"
        ),
        "world": experiment["world"],
        "pictures": f"{spec.image_size} px, up to {model.context} at once",
        "actions": f"{spec.frameskip} x {spec.statistics.action_dim} numbers a block",
        "action_mean": list(spec.statistics.action_mean),
        "action_std": list(spec.statistics.action_std),
        "statistics": imported["statistics"],
    }
    console.facts(facts, title=f"{checkpoint} in {out}")
    if json:
        write_json(json, {"run": str(out), "checkpoint": checkpoint, **facts})


def _join(folder: Path, out: Path, json: Path | None, *needless: object) -> None:
    """Make a run of pieces, which know their statistics, their world and their data."""
    if any(needless):
        raise ValueError(
            f"{folder} holds pieces of a run, which say all of that: leave --data, --action-* and "
            "--world out."
        )
    join_pieces(folder, out)
    model, experiment = checkpoints.load(out), read_json(out / checkpoints.EXPERIMENT)
    budget = checkpoints.budget_in_words(experiment)
    facts = {
        "weights": f"half precision, {sum(p.numel() for p in model.parameters()):,} parameters",
        "recipe": f"{experiment.get('recipe')}{f' ({budget})' if budget else ''}",
        "world": experiment.get("world"),
    }
    console.facts(facts, title=f"{folder} in {out}")
    if json:
        write_json(json, {"run": str(out), "checkpoint": str(folder), **facts})
