"""What every analysis keeps to, on a small trained run of Two-Room, and on data that do not hold
what it needs."""

import dataclasses
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from lewm import registry
from lewm.cli.main import main
from lewm.data.episodes import Episode, Episodes
from lewm.data.writing import EpisodeWriter
from lewm.report import sections
from lewm.runs.run import Unsupported, open_run
from tests.support.project import SIZE, train_command

NAMES = registry.names("analyses")
SMALL = {
    "seed": 0, "draws": 20, "pairs": 6, "clips": 1, "episodes": 20, "fit_frames": 128,
    "test_frames": 64, "updates": 8,
    "gaussians": 8, "slices": 64, "plans": 1, "rollouts": 32, "paper": False,
}  # fmt: skip
"""Whatever fields of these an analysis has; so every contract is seen in seconds."""


def small(name):
    kind = registry.load("analyses", name)
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{field: value for field, value in SMALL.items() if field in known})


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyses")
    data = folder / "episodes.h5"
    assert (
        main(["collect", "two-room", "--out", str(data), "--episodes=64", f"--image-size={SIZE}"])
        == 0
    )
    assert main(train_command(data, folder / "run", "--training.holdout", "0.5")) == 0
    return open_run(folder / "run")


@pytest.fixture(scope="module")
def results(opened):
    return {name: small(name).run(opened) for name in NAMES}


def numbers(value):
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list | tuple):
        return [n for item in value for n in numbers(item)]
    return [value] if isinstance(value, float) else []


def timeless(value):
    """Without what a clock says, which is no function of the seed."""
    if isinstance(value, dict):
        timed = ("second", "ms", "gflops")
        return {
            key: timeless(item)
            for key, item in value.items()
            if not any(word in key for word in timed)
        }
    return value


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_frozen_dataclass_with_a_name_and_a_question(name):
    kind = registry.load("analyses", name)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind.name == name
    assert kind.question.endswith("?")
    kind()  # its defaults are settings


@pytest.mark.parametrize("name", NAMES)
def test_its_numbers_are_finite_and_can_be_stored(name, results):
    found = results[name]
    assert found.name == name
    assert json.dumps(found.values)
    assert any(map(math.isfinite, numbers(found.values)))
    assert not any(map(math.isinf, numbers(found.values)))
    assert all(array.dtype.kind in "biuf" for array in found.arrays.values()), (
        "arrays are stored as safetensors"
    )


@pytest.mark.parametrize("name", NAMES)
def test_its_tables_can_be_shown(name, results):
    assert results[name].tables
    for caption, rows in results[name].tables.items():
        assert rows, caption
        assert len({tuple(row) for row in rows}) == 1, f"{caption}: rows with other columns"


@pytest.mark.parametrize("name", NAMES)
def test_its_figures_are_whole_pictures(name, results):
    import io

    panels = sections.draw(results[name])
    assert panels
    for panel in panels:
        assert panel.title
        assert bool(panel.svg) != bool(panel.webp)
        if panel.svg:
            ElementTree.fromstring(panel.svg)
        else:
            assert (
                Image.open(io.BytesIO(panel.webp)).format
                == Image.open(io.BytesIO(panel.still)).format
                == "WEBP"
            )
    assert len({panel.title for panel in panels}) == len(panels), "titles name the files"


@pytest.mark.parametrize("name", NAMES)
def test_the_model_stays_as_it_is_and_the_same_seed_gives_the_same_numbers(name, opened, results):
    before = {key: value.clone() for key, value in opened.model.state_dict().items()}
    again = small(name).run(opened)
    assert all(torch.equal(value, before[key]) for key, value in opened.model.state_dict().items())
    assert not opened.model.training
    assert all(parameter.grad is None for parameter in opened.model.parameters())
    assert json.dumps(timeless(again.values)) == json.dumps(timeless(results[name].values))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_training_mode_is_refused(name, opened):
    opened.model.train()
    try:
        with pytest.raises(ValueError, match="evaluation mode"):
            small(name).run(opened)
    finally:
        opened.model.eval()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("economy", "surprise")])
def test_too_few_episodes_are_refused_with_the_minimum(name, opened):
    """But where one picture is enough, and where the world can play more episodes."""
    few = dataclasses.replace(opened, fit_ids=opened.fit_ids[:1], test_ids=opened.test_ids[:1])
    with pytest.raises(Unsupported, match=r"at least \d+"):
        small(name).run(few)


@pytest.fixture(scope="module")
def stateless(opened, tmp_path_factory):
    """The same episodes as somebody else may have them: pictures and actions alone."""
    path = tmp_path_factory.mktemp("stateless") / "episodes.h5"
    episodes = opened.episodes
    with EpisodeWriter(
        path, dataclasses.replace(episodes.provenance, state_names=(), state_units=())
    ) as writer:
        for i in range(len(episodes)):
            rows = episodes.offsets[i] + np.arange(episodes.lengths[i])
            writer.append(Episode(episodes.rows("pixels", rows), episodes.actions(i)))
    return dataclasses.replace(opened, episodes=Episodes.open(path), open_world=None)


@pytest.mark.parametrize("name", NAMES)
def test_without_states_it_answers_or_says_what_it_needs(name, stateless):
    needs_states = name in ("probing", "surprise", "planning")
    if needs_states:
        with pytest.raises(Unsupported, match="expected"):
            small(name).run(stateless)
    else:
        assert small(name).run(stateless).tables
