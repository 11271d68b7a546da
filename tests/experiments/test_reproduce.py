"""Recipes are complete statements, and each tiny one runs from its data to its numbers."""

import json
import re

import numpy as np
import pytest

from lewm import registry
from lewm.cli.main import main
from lewm.data.episodes import Episodes
from lewm.experiments import pipeline, recipes, reproduce
from lewm.runs import checkpoints
from lewm.training.fit import FittingConfig

RECIPES = [recipes.load(name) for name in recipes.RECIPES]
TINY = [experiment.recipe for experiment in RECIPES if experiment.recipe.endswith("-tiny")]


@pytest.mark.parametrize("experiment", RECIPES, ids=lambda e: e.recipe)
def test_a_recipe_says_what_it_takes_and_gives(experiment):
    for text in (
        experiment.hardware,
        experiment.cost,
        experiment.expected,
        experiment.source,
        experiment.command,
    ):
        assert len(text) > 5, (
            "hardware, cost, expected number, source and command are for people to read"
        )
    assert re.search(r"\d", experiment.expected), "an expectation is a number"
    assert experiment.world in registry.names("worlds")


def test_every_world_has_a_tiny_and_a_paper_recipe():
    assert set(recipes.RECIPES) == {
        f"{world}-{size}" for world in registry.names("worlds") for size in ("tiny", "paper")
    } | {"two-room-walls-tiny"}


def test_looks_of_tiny_and_paper_are_kept_apart_by_name():
    assert all(e.look == "published" for e in RECIPES if e.recipe.endswith("-paper"))
    assert {e.recipe: e.look for e in RECIPES if e.recipe.endswith("-tiny")} == {
        "two-room-tiny": "published",
        "two-room-walls-tiny": "walls",
        "push-t-tiny": "tiny",
        "reacher-tiny": "fast",
        "cube-tiny": "fast",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_runs_whole_in_short_form(name, tmp_path, capsys):
    experiment = recipes.load(name)
    try:
        registry.load("worlds", experiment.world)
    except ImportError as missing:
        pytest.skip(str(missing))
    out = tmp_path / name
    assert main(["reproduce", name, "--out", str(out), "--short", "--seed", "3"]) == 0
    assert "random encoder" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["command"] == f"lewm reproduce {name} --out {out} --seed 3 --short"
    (task,) = result["evaluations"]
    assert set(task["strict"]) >= {"agent", "random", "do-nothing"}
    assert task["strict"]["do-nothing"]["rate"] <= 0.5
    assert all(np.isfinite(v["r"]) and set(v["controls"]) for v in result["probe"].values())
    with Episodes.open(out / "episodes.h5") as episodes:
        assert episodes.provenance.look == experiment.look
        assert episodes.every == experiment.collection.every
    # Again: finished work is not done twice, another seed is refused.
    before = (out / "result.json").read_bytes()
    assert reproduce.reproduce(name, out, 3, short=True) == result
    assert (out / "result.json").read_bytes() == before
    with pytest.raises(ValueError, match="seed"):
        reproduce.reproduce(name, out, 4, short=True)


def test_an_interrupted_reproduction_goes_on(tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(*_, **__):
        raise Enough

    monkeypatch.setattr(reproduce, "SHORT_EPISODES", 20)
    monkeypatch.setattr(reproduce, "SHORT_UPDATES", 2)
    monkeypatch.setattr(reproduce, "SHORT_PAIRS", 6)
    monkeypatch.setattr("lewm.analyses.probing.MLP", FittingConfig(updates=5))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", stop)
        with pytest.raises(Enough):
            reproduce.reproduce("two-room-tiny", tmp_path, short=True)
    trained = checkpoints.latest(tmp_path / "run")
    result = reproduce.reproduce("two-room-tiny", tmp_path, short=True)
    assert checkpoints.latest(tmp_path / "run") == trained
    assert set(result["seconds"]) == {"collect", "train", "fit", "evaluate", "analyse", "total"}
    assert "| random |" in (tmp_path / "result.md").read_text()
