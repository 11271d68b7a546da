"""What was found comes back as it was written, and a damaged file names itself."""

import json

import numpy as np
import pytest

from lewm.contracts import Result
from lewm.runs import answers
from lewm.runs.answers import load_result, save_result

FOUND = Result(
    "probing",
    {"r": 0.5, "interval": [0.4, 0.6], "episodes": np.int64(3), "undefined": float("nan")},
    {
        "latents": np.arange(6.0).reshape(2, 3),
        "pixels": np.zeros((2, 4, 4, 3), np.uint8),
        "known": np.array([True, False]),
    },
    {"3 episodes": [{"variable": "x", "r": 0.5}]},
)


def test_what_was_saved_is_loaded(tmp_path):
    assert load_result(tmp_path / "probing") is None
    save_result(tmp_path / "probing", FOUND, {"seed": 1})
    found, about = load_result(tmp_path / "probing")
    assert about == {"seed": 1}
    assert found.values == {"r": 0.5, "interval": [0.4, 0.6], "episodes": 3, "undefined": None}
    assert found.tables == FOUND.tables
    assert all(
        (found.arrays[name] == array).all() and found.arrays[name].dtype == array.dtype
        for name, array in FOUND.arrays.items()
    )


def test_transposed_arrays_are_stored_in_their_own_order(tmp_path):
    array = np.arange(6).reshape(2, 3).T
    save_result(tmp_path, Result("a", {}, {"array": array}), {})
    assert (load_result(tmp_path)[0].arrays["array"] == array).all()


@pytest.mark.parametrize(
    ("file", "content"),
    [("result.json", b"{"), ("result.json", b"{}"), ("arrays.safetensors", b"short")],
)
def test_a_damaged_result_names_its_folder(tmp_path, file, content):
    save_result(tmp_path / "probing", FOUND, {})
    (tmp_path / "probing" / file).write_bytes(content)
    with pytest.raises(ValueError, match="probing is damaged"):
        load_result(tmp_path / "probing")


def test_numbers_without_arrays_count_as_none_that_were_written_whole(tmp_path, monkeypatch):
    save_result(tmp_path, FOUND, {"seed": 1})

    def fail(path, content):
        raise OSError("full")

    monkeypatch.setattr(answers, "write_atomically", fail)
    with pytest.raises(OSError, match="full"):
        save_result(tmp_path, FOUND, {"seed": 2})
    assert load_result(tmp_path) is None, "old numbers must not stand beside new arrays"


def test_the_file_is_json_that_any_program_reads(tmp_path):
    save_result(tmp_path, FOUND, {})
    assert json.loads(
        (tmp_path / "result.json").read_text(),
        parse_constant=lambda _: pytest.fail("NaN is not JSON"),
    )
