"""The harness itself: what must fail a case does."""

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.harness import GENERAL, Attempts, damaged, differences, fuzz


def misbehave(path: Path):
    what = path.read_text()
    if what == "segfault":
        ctypes.string_at(0)
    if what == "memory":
        np.ones(1 << 30)
    if what == "traceback":
        return {}["a"]
    if what == "library":
        return json.loads("{")
    if what == "nameless":
        raise ValueError("expected a file, got another. Give it.")
    if what == "wordless":
        raise ValueError(f"{path}: no.")
    if what == "refused":
        raise ValueError(f"{path}: expected a file, got another. Give it.")
    return {"text": what}


@pytest.mark.parametrize(
    ("what", "how", "said"),
    [
        ("segfault", "failed", "exit code -11"),
        ("memory", "failed", "MemoryError"),
        ("traceback", "failed", "KeyError"),
        ("library", "failed", "JSONDecodeError"),
        ("nameless", "failed", "does not name the file"),
        ("wordless", "failed", "does not say what was expected"),
        ("refused", "refused", "expected a file"),
        ("hello", "contents", "hello"),
    ],
)
def test_how_an_attempt_ends(tmp_path, what, how, said):
    path = tmp_path / "a.txt"
    path.write_text(what)
    with Attempts(misbehave) as attempt:
        ended, result = attempt(path)
        assert ended == how
        assert said in str(result)
        path.write_text("afterwards")
        assert attempt(path) == ("contents", {"text": "afterwards"})


def test_what_is_equal():
    sound = {"index": np.arange(3), "pixels": np.zeros((2, 2), np.uint8), "note": "a"}
    for name, value, wrong in [
        ("pixels", np.ones((2, 2), np.uint8), ""),
        ("note", None, ""),
        ("index", np.array([0, 1, 3]), "index"),
        ("index", np.arange(3.0), "index"),
        ("pixels", np.zeros((2, 3), np.uint8), "pixels of kind"),
        ("pixels", np.zeros((2, 2), np.int16), "pixels of kind"),
        ("more", 1, "on one side only"),
    ]:
        found = differences({**sound, name: value}, sound, ("pixels", "note"))
        assert bool(found) == bool(wrong), (name, value)
        assert wrong in found


def numbers(path: Path):
    return {"numbers": np.frombuffer(path.read_bytes(), np.uint8)}


def test_a_failure_names_the_case_that_repeats_it(tmp_path):
    sound = tmp_path / "a.bin"
    sound.write_bytes(bytes(range(200)))
    with pytest.raises(AssertionError, match=r"case 0 \(seed 3, .*flip_bits of a.bin: other cont"):
        fuzz(numbers, [sound], tmp_path, cases=3, seed=3)


def test_cases_repeat_and_every_mutator_damages(tmp_path):
    sound = tmp_path / "a.bin"
    sound.write_bytes(np.random.default_rng(0).bytes(9000))
    (tmp_path / "one").mkdir()
    for number, mutate in enumerate(GENERAL):
        path, done = damaged([sound], number, tmp_path / "one", GENERAL, (0, 1))
        first = path.read_bytes()
        assert first != sound.read_bytes(), mutate.__name__
        assert mutate.__name__ in done
        assert damaged([sound], number, tmp_path / "one", GENERAL, (0, 1))[0].read_bytes() == first


def test_folders_are_damaged_in_one_file(tmp_path):
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        (folder / name).write_bytes(name.encode() * 50)
    (tmp_path / "copies").mkdir()
    hit = set()
    for number in range(40):
        path, _ = damaged([folder], number, tmp_path / "copies", GENERAL, (0, 1))
        changed = [
            name
            for name in ("a", "b", "deep/c")
            if not (path / name).exists()
            or (path / name).read_bytes() != (folder / name).read_bytes()
        ]
        assert len(changed) <= 1  # none where a byte became what it was
        hit.update(changed)
    assert hit == {"a", "b", "deep/c"}
