"""What every analysis keeps to, on a small trained run of Two-Room, and on data that do not hold
what it needs."""

import dataclasses
import json
import math
import re
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
from tests.support.results import timeless

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


def made(folder, *look):
    data = folder / "episodes.h5"
    words = ["collect", "two-room", "--out", str(data), "--episodes=64", f"--image-size={SIZE}"]
    assert main([*words, *look]) == 0
    assert main(train_command(data, folder / "run", "--training.holdout", "0.5")) == 0
    return open_run(folder / "run")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return made(tmp_path_factory.mktemp("analyses"))


@pytest.fixture(scope="module")
def walled(tmp_path_factory):
    """A run of a world where some state variables never change within an episode."""
    return made(tmp_path_factory.mktemp("walls"), "--look=walls")


@pytest.fixture(scope="module")
def results(opened):
    return {name: small(name).run(opened) for name in NAMES}


def numbers(value):
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list | tuple):
        return [n for item in value for n in numbers(item)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_frozen_dataclass_with_a_name_and_a_question(name):
    kind = registry.load("analyses", name)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind.name == name
    assert kind.question.endswith("?")
    kind()  # its defaults are settings


@pytest.mark.parametrize("name", NAMES)
def test_its_result_is_a_frozen_record_of_finite_numbers(name, results):
    found, kind = results[name], registry.load("analyses", name).result
    assert type(found) is kind
    assert found.name == kind.name == name
    assert kind.__dataclass_params__.frozen
    told = found.to_json()
    assert json.dumps(told, allow_nan=False)
    assert any(map(math.isfinite, numbers(told)))
    assert all(array.dtype.kind in "biuf" for array in found.arrays().values()), (
        "arrays are stored as safetensors"
    )


def same(value, other):
    """Equal, arrays and types included."""
    assert type(value) is type(other)
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(value, other)
        assert value.dtype == other.dtype
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            same(getattr(value, field.name), getattr(other, field.name))
    elif isinstance(value, dict):
        assert list(value) == list(other)
        for key in value:
            same(value[key], other[key])
    elif isinstance(value, tuple):
        for one, two in zip(value, other, strict=True):
            same(one, two)
    else:
        assert value == other


@pytest.mark.parametrize("name", NAMES)
def test_its_result_becomes_json_and_comes_back_as_it_was(name, results):
    found = results[name]
    told = json.loads(json.dumps(found.to_json()))
    same(type(found).from_json(told, found.arrays()), found)


def records(value, place=()):
    """A record and every record in it, each with its place."""
    inside = enumerate(value) if isinstance(value, tuple) else ()
    if dataclasses.is_dataclass(value):
        yield place, value
        inside = vars(value).items()
    elif isinstance(value, dict):
        inside = value.items()
    for key, item in inside:
        yield from records(item, (*place, key))


@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_field_of_its_result_is_refused_by_name(name, results):
    """Of the whole and of every record in it, arrays included."""
    found = results[name]
    told, arrays = json.dumps(found.to_json()), found.arrays()
    for place, record in records(found):
        for field in dataclasses.fields(record):
            old, new = ("/".join(map(str, (*place, last))) for last in (field.name, "renamed"))
            values = json.loads(told)
            at = values
            for key in place:
                at = at[key]
            if field.name in at:
                at["renamed"] = at.pop(field.name)
            moved = {
                new + known[len(old) :] if f"{known}/".startswith(f"{old}/") else known: array
                for known, array in arrays.items()
            }
            words = f"unknown field '{new.replace('/', '.')}'"
            with pytest.raises(ValueError, match=re.escape(words)):
                type(found).from_json(values, moved)


@pytest.mark.parametrize("name", NAMES)
def test_its_tables_can_be_shown(name, results):
    assert results[name].tables()
    for caption, rows in results[name].tables().items():
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
def test_a_layout_that_stays_for_an_episode_gives_finite_numbers(name, walled):
    analysis = small(name)
    if name == "probing":
        analysis = dataclasses.replace(analysis, mlp=False)  # ridge probes take the same targets
    found = analysis.run(walled)
    assert json.dumps(found.to_json(), allow_nan=False)
    assert all(rows for rows in found.tables().values())
    assert sections.draw(found)
    if name == "probing":
        assert list(found.variables) == ["x", "y", "wall", "door", "vertical"]
        assert all(math.isfinite(score.r) for score in found.variables.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_model_stays_as_it_is_and_the_same_seed_gives_the_same_numbers(name, opened, results):
    before = {key: value.clone() for key, value in opened.model.state_dict().items()}
    again = small(name).run(opened)
    assert all(torch.equal(value, before[key]) for key, value in opened.model.state_dict().items())
    assert not opened.model.training
    assert all(parameter.grad is None for parameter in opened.model.parameters())
    assert json.dumps(timeless(again.to_json())) == json.dumps(timeless(results[name].to_json()))


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
        assert small(name).run(stateless).tables()
