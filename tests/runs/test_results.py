"""What was found comes back as it was written, a changed field names itself, and so does a damaged
file."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from lewm.runs import answers
from lewm.runs.answers import Outdated, load_result, save_result
from lewm.runs.results import Interval, Result


@dataclass(frozen=True)
class Score:
    r: float | None
    interval: Interval


@dataclass(frozen=True)
class Clip:
    start: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Found(Result):
    episodes: int
    error: float
    enough: bool
    words: str
    scores: Mapping[str, Score]
    curve: tuple[tuple[int, float], ...]
    clips: tuple[Clip, ...]
    latents: np.ndarray
    states: np.ndarray | None
    weights: Mapping[str, np.ndarray]
    best: Score | None = None

    name: ClassVar[str] = "probing"

    def tables(self):
        return {f"{self.episodes} episodes": [{"variable": "x", "r": np.float64(0.5)}]}


FOUND = Found(
    episodes=3,
    error=0.1,
    enough=True,
    words="few",
    scores={"x": Score(0.5, (0.4, 0.6)), "a/b": Score(None, (0.0, 1.0))},
    curve=((1, 0.5), (2, 0.25)),
    clips=(Clip(3, np.zeros((2, 4, 4, 3), np.uint8)), Clip(4, np.ones((1, 4, 4, 3), np.uint8))),
    latents=np.arange(6.0).reshape(2, 3),
    states=None,
    weights={"mean": np.arange(3), "known": np.array([True, False])},
)


def alike(found, other):
    return found.to_json() == other.to_json() and all(
        np.array_equal(array, other.arrays()[place]) and array.dtype == other.arrays()[place].dtype
        for place, array in found.arrays().items()
    )


def test_a_record_comes_back_as_it_was():
    told = json.loads(json.dumps(FOUND.to_json()))
    again = Found.from_json(told, FOUND.arrays())
    assert alike(again, FOUND)
    assert again.scores == FOUND.scores
    assert again.curve == FOUND.curve
    assert again.clips[1].start == 4
    assert again.states is None
    assert set(FOUND.arrays()) == {
        "clips/0/pixels",
        "clips/1/pixels",
        "latents",
        "weights/mean",
        "weights/known",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: told.pop("words"), "missing field 'words' of Found"),
        (lambda told: told.update(more=1), "unknown field 'more' of Found"),
        (lambda told: told["scores"]["x"].pop("r"), "missing field 'scores.x.r' of Score"),
        (lambda told: told.update(episodes=2.5), "field 'episodes': expected int, got float"),
        (lambda told: told.update(episodes=True), "field 'episodes': expected int, got bool"),
        (lambda told: told.update(episodes=None), "field 'episodes': expected int, got NoneType"),
        (lambda told: told.update(error="0.1"), "field 'error': expected float, got str"),
        (lambda told: told.update(words=1), "field 'words': expected str, got int"),
        (lambda told: told.update(scores=[]), "field 'scores': expected"),
        (lambda told: told.update(curve=[[1]]), "field 'curve.0': expected"),
        (lambda told: told.update(clips=[3, 4]), "an array at 'clips/0/pixels'"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(change, words):
    told = json.loads(json.dumps(FOUND.to_json()))
    change(told)
    with pytest.raises(ValueError, match=words):
        Found.from_json(told, FOUND.arrays())


@pytest.mark.parametrize("place", ["latents", "clips/1/pixels"])
def test_an_array_that_is_missing_or_has_another_name_is_refused(place):
    arrays = FOUND.arrays()
    moved = arrays.pop(place)
    with pytest.raises(ValueError, match=f"missing field '{place.replace('/', '.')}'"):
        Found.from_json(FOUND.to_json(), arrays)
    with pytest.raises(ValueError, match="unknown field 'other'"):
        Found.from_json(FOUND.to_json(), {**FOUND.arrays(), "other": moved})


@pytest.mark.parametrize(
    ("odd", "place"),
    [
        (replace(FOUND, error=math.inf), "error"),
        (replace(FOUND, best=Score(math.nan, (0.0, 1.0))), r"best\.r"),
        (replace(FOUND, best=Score(None, (math.nan, 1.0))), r"best\.interval\.0"),
        (replace(FOUND, curve=((1, np.float64("nan")),)), r"curve\.0\.1"),
        (replace(FOUND, latents=np.array([[0.0, np.nan]])), "latents"),
        (replace(FOUND, weights={"mean": np.array([-np.inf])}), r"weights\.mean"),
    ],
)
def test_what_is_no_number_is_no_result_and_names_its_place(odd, place, tmp_path):
    save_result(tmp_path, FOUND, {})
    with pytest.raises(ValueError, match=f"got NaN or infinity in {place}"):
        save_result(tmp_path, odd, {})
    assert alike(load_result(tmp_path, Found)[0], FOUND), "what was there stays"
    assert FOUND.undefined() == []


def test_what_is_no_number_in_a_file_is_refused(tmp_path):
    save_result(tmp_path, FOUND, {})
    file = tmp_path / "result.json"
    sound = file.read_text()
    for bad, words in (
        ("NaN", "NaN, which is no number"),
        ("1e999", "1e999, which is no number"),
        ("null", "field 'error': expected float, got NoneType"),
    ):
        file.write_text(sound.replace('"error": 0.1', f'"error": {bad}'))
        with pytest.raises(ValueError, match=words):
            load_result(tmp_path, Found)
    file.write_text(sound)
    from safetensors.numpy import load_file, save_file

    arrays = load_file(tmp_path / "arrays.safetensors")
    arrays["latents"][0, 0] = np.nan
    save_file(arrays, tmp_path / "arrays.safetensors")
    with pytest.raises(ValueError, match="NaN or infinity in field 'latents'"):
        load_result(tmp_path, Found)


def test_words_of_a_record_steer_no_terminal(tmp_path):
    save_result(
        tmp_path, replace(FOUND, words="a\x1b[2Jb", scores={"\u202ex": Score(0.5, (0, 1))}), {}
    )
    found, _ = load_result(tmp_path, Found)
    assert found.words == r"a\x1b[2Jb"
    assert list(found.scores) == [r"\u202ex"]


def test_what_was_saved_is_loaded(tmp_path):
    folder = tmp_path / "probing"
    assert load_result(folder, Found) is None
    save_result(folder, FOUND, {"seed": 1})
    found, about = load_result(folder, Found)
    assert about == {"seed": 1}
    assert alike(found, FOUND)
    told = json.loads((folder / "result.json").read_text())
    assert told["name"] == "probing"
    assert told["tables"] == {"3 episodes": [{"variable": "x", "r": 0.5}]}


def test_transposed_arrays_are_stored_in_their_own_order(tmp_path):
    array = np.arange(6).reshape(2, 3).T
    save_result(tmp_path, replace(FOUND, latents=array), {})
    assert (load_result(tmp_path, Found)[0].latents == array).all()


@pytest.mark.parametrize(
    ("file", "content"),
    [("result.json", b"{"), ("result.json", b"{}"), ("arrays.safetensors", b"short")],
)
def test_a_damaged_result_names_its_folder(tmp_path, file, content):
    save_result(tmp_path / "probing", FOUND, {})
    (tmp_path / "probing" / file).write_bytes(content)
    with pytest.raises(ValueError, match="probing is damaged"):
        load_result(tmp_path / "probing", Found)


def test_a_result_of_another_version_names_field_file_and_command(tmp_path):
    @dataclass(frozen=True)
    class Newer(Found):
        margin: float = 0.0

    folder = tmp_path / "run" / "analyses" / "probing"
    save_result(folder, FOUND, {})
    with pytest.raises(Outdated) as refused:
        load_result(folder, Newer)
    for words in (
        str(folder / "result.json"),
        "missing field 'margin' of Newer",
        f"Ask again: lewm analyse {tmp_path / 'run'} probing --again",
    ):
        assert words in str(refused.value)


def test_numbers_without_arrays_count_as_none_that_were_written_whole(tmp_path, monkeypatch):
    save_result(tmp_path, FOUND, {"seed": 1})

    def fail(path, content):
        raise OSError("full")

    monkeypatch.setattr(answers, "write_atomically", fail)
    with pytest.raises(OSError, match="full"):
        save_result(tmp_path, FOUND, {"seed": 2})
    assert load_result(tmp_path, Found) is None, "old numbers must not stand beside new arrays"


def test_the_file_is_json_that_any_program_reads(tmp_path):
    save_result(tmp_path, FOUND, {})
    assert json.loads(
        (tmp_path / "result.json").read_text(),
        parse_constant=lambda _: pytest.fail("NaN is not JSON"),
    )
