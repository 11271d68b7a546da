"""Damaged runs: JSON, logs, weights, heads, answers, published checkpoints and pieces."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lewm.analyses.economy import EconomyResult
from lewm.contracts import DataSpec, Statistics
from lewm.planning.heads.temporal import TemporalConfig
from lewm.report.page import render
from lewm.report.record import record_of
from lewm.runs import checkpoints
from lewm.runs.answers import load_result, save_result
from lewm.runs.heads import head_names, load_head, save_head
from lewm.runs.pieces import join_pieces, save_pieces
from lewm.runs.published import build, read_checkpoint
from lewm.runs.run import open_run
from tests.fuzz.harness import CASES, fuzz
from tests.support.models import SMALLEST as CONFIG
from tests.support.published import checkpoint
from tests.support.results import economy

# ----------------------------------------------------------------------------------------- mutators

VALUES = [None, True, 0, -1, 1.5, 2**40, 10**30, 1e300, "", "x\x1b", [], {}, [[]], {"a": []}]


def _json_files(path):
    files = [path] if path.is_file() else sorted(path.rglob("*.json"))
    return [file for file in files if file.suffix == ".json"]


def _any_json(path, rng):
    files = _json_files(path)
    return files[rng.integers(len(files))] if files else None


def _places(value, place=()):
    """Every place in a JSON value."""
    yield place
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(item, (*place, name))


def _at(value, place):
    for name in place:
        value = value[name]
    return value


def on_json(change):
    """A mutator of one entry, anywhere in one JSON file."""

    def mutate(path, rng):
        file = _any_json(path, rng)
        if file is None:
            return
        value = json.loads(file.read_text())
        places = [place for place in _places(value) if place]
        if places:
            *where, name = places[rng.integers(len(places))]
            change(_at(value, where), name, rng)
        file.write_text(json.dumps(value))

    mutate.__name__ = change.__name__
    return mutate


@on_json
def another_value(holder, name, rng):
    holder[name] = VALUES[rng.integers(len(VALUES))]


@on_json
def lose_an_entry(holder, name, rng):
    del holder[name]


@on_json
def one_entry_more(holder, name, rng):
    holder.insert(name, holder[name]) if isinstance(holder, list) else holder.update({"more": 1})


@on_json
def number_of_another_sign_or_size(holder, name, rng):
    if isinstance(holder[name], int | float):
        holder[name] = holder[name] * [-1, 0, 1e9, 0.5][rng.integers(4)]


def on_text(change):
    def mutate(path, rng):
        file = _any_json(path, rng)
        if file is not None:
            file.write_text(change(file.read_text(), rng))

    mutate.__name__ = change.__name__
    return mutate


@on_text
def nest_deeply(text, rng):
    return ["[" * 10**5, '{"a":' * 10**5, text.replace(":", ": [" * 1, 1)][rng.integers(3)]


@on_text
def literal(text, rng):
    """A number becomes what JSON has not, or no machine can hold."""
    words = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000]
    digits = [i for i, c in enumerate(text) if c.isdigit() and text[i - 1] in " [,:"]
    if not digits:
        return text
    place = digits[rng.integers(len(digits))]
    end = place
    while end < len(text) and text[end] in "0123456789.e+-":
        end += 1
    return text[:place] + words[rng.integers(len(words))] + text[end:]


def log_line(path, rng):
    """A line of the log is lost, cut, doubled or another."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.exists():
        return
    lines = file.read_text().split("\n")
    place = int(rng.integers(len(lines)))
    other = ["", lines[place][:10], "[]", '{"update": "a"}', '{"update": 1, "loss": NaN}', "{}"]
    lines[place] = other[rng.integers(len(other))]
    file.write_text("\n".join(lines))


def header(path, rng):
    """Something in the header of a safetensors file is another: a type, a shape, an offset."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    files = [file for file in files if file.suffix == ".safetensors"]
    if not files:
        return
    file = files[rng.integers(len(files))]
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])
    if not told:
        return
    name = list(told)[rng.integers(len(told))]
    entry = told[name]
    way = int(rng.integers(7))
    if "dtype" not in entry:
        entry[next(iter(entry))] = ["", "{", "x" * 100, "[" * 1000][way % 4]
    elif way == 0:
        entry["dtype"] = ["F16", "F64", "I8", "BF16", "F8_E4M3", "C64", "X"][rng.integers(7)]
    elif way == 1:
        entry["shape"] = [[2**62, 4], [], [0], [-1], entry["shape"][::-1]][rng.integers(5)]
    elif way == 2:
        entry["data_offsets"] = [[0, 2**63], [8, 0], [0, 0]][rng.integers(3)]
    elif way == 3:
        told[name + "x"] = told.pop(name)
    elif way == 4:
        del told[name]
    elif way == 5:
        told[name] = told[next(iter(told))]
    else:
        entry["dtype"] = None
    head = json.dumps(told).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])


def values(path, rng):
    """Some number in a safetensors file is NaN, infinite or negative."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    files = [file for file in files if file.suffix == ".safetensors"]
    if not files:
        return
    file = files[rng.integers(len(files))]
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) - start < 4:
        return
    place = start + 4 * int(rng.integers((len(data) - start) // 4))
    bad = np.float32([np.nan, np.inf, -np.inf, -1.0][rng.integers(4)])
    data[place : place + 4] = bad.tobytes()
    file.write_bytes(data)


JSON = (another_value, lose_an_entry, one_entry_more, number_of_another_sign_or_size)
JSON += (nest_deeply, literal)
TENSORS = (header, values)

# ------------------------------------------------------------------------------------------ openers


def weights_of(model):
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}


def a_run(path: Path):
    """As every command opens one, its heads and its log."""
    run = open_run(path)
    for name in head_names(path):
        load_head(path, name, run.model)
    rows = checkpoints.metrics(path)
    return {**weights_of(run.model), "rows": len(rows), "planning": repr(run.planning)}


def a_report(path: Path):
    """What is stored for people, on a page."""
    return {"page": render([record_of(path)], "lewm report")}


def published(path: Path):
    return weights_of(build(read_checkpoint(path), (0.0,), (1.0,)))


def pieces(path: Path):
    out = path.parent / "joined"
    shutil.rmtree(out, ignore_errors=True)
    model = checkpoints.load(join_pieces(path, out))
    return weights_of(model)


def an_answer(path: Path):
    found = load_result(path, EconomyResult)
    if found is None:
        raise ValueError(f"{path}: expected an answer, got none.")
    return {"record": repr(found[0])}


# -------------------------------------------------------------------------------------------- tests


def same_kind(found, sound):
    """What is opened has the names, shapes and types of what was sound, and finite weights. Which
    numbers they are no file of ours says twice."""
    if found.keys() != sound.keys():
        return f"entries {sorted(found.keys() ^ sound.keys())} on one side only"
    for name, value in found.items():
        if isinstance(value, np.ndarray):
            like = sound[name]
            if (value.shape, value.dtype) != (like.shape, like.dtype):
                return f"{name} is {value.dtype} {value.shape}"
            if not np.isfinite(value).all() or ("running_var" in name and (value < 0).any()):
                return f"{name} is not sound"
    return ""


@pytest.fixture
def run(tmp_path):
    """A run of a tiny model with a head, an answer and a log, without episodes."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path / "sound"
    own = CONFIG.build(DataSpec(16, 5, Statistics((0.5,) * 3, (0.3,) * 3, (0.1,), (1.0,))))
    described = {"model": checkpoints.describe_model(own), "world": "two-room"}
    described |= {"data": {"episodes": 4, "steps": 40, "provenance": {"world": "two-room"}}}
    described |= {"split": {"train": [0, 1, 2], "heldout": [3]}, "training": {"updates": 5}}
    checkpoints.claim(folder, described, {"data_path": str(tmp_path / "gone.h5"), "recipe": "r"})
    log = checkpoints.Log(folder, 0)
    for update in range(1, 6):
        log.write({"update": update, "prediction": 0.5, "sigreg": 5.0, "seconds": 1.0 * update})
    checkpoints.save(folder, 5, own, torch.optim.AdamW(own.parameters()))
    save_head(folder, "temporal", TemporalConfig(8, 4, 4).build(8, 5), {"fitted_to": {}})
    return folder


def test_runs(run, tmp_path):
    fuzz(a_run, [run], tmp_path, mutators=(*JSON, *TENSORS, log_line), same=same_kind)


def test_pages(run, tmp_path):
    digest = checkpoints.digest_of_newest(run)
    save_result(run / "analyses" / "economy", economy(), {"weights": digest})
    fuzz(
        a_report,
        [run],
        tmp_path,
        mutators=(*JSON, log_line),
        same=lambda *_: "",
        cases=max(10, CASES // 4),
    )


def test_published_checkpoints(tmp_path):
    sound = checkpoint(tmp_path / "published")
    fuzz(published, [sound], tmp_path, mutators=JSON, same=same_kind)


def test_pieces(run, tmp_path):
    save_pieces(run, tmp_path / "pieces", limit=90_000)
    fuzz(pieces, [tmp_path / "pieces"], tmp_path, mutators=TENSORS, same=same_kind)


def test_answers(tmp_path):
    save_result(tmp_path / "economy", economy(), {})
    fuzz(an_answer, [tmp_path / "economy"], tmp_path, mutators=JSON, same=lambda *_: "")
