"""Weights in pieces: small files that make a run again, and never one of two."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lewm.cli.main import main
from lewm.runs import checkpoints
from lewm.runs.pieces import HEADER_BYTES, join_pieces, save_pieces

LIMIT = 120_000 + HEADER_BYTES


@pytest.fixture
def pieces(small_run, tmp_path):
    return save_pieces(small_run, tmp_path / "pieces", LIMIT)


def test_pieces_are_small_and_make_the_run_again(small_run, pieces, tmp_path):
    assert len(pieces) > 2
    assert all(file.stat().st_size <= LIMIT for file in pieces)
    run = join_pieces(pieces[0].parent, tmp_path / "run")
    ours, theirs = checkpoints.load(run).state_dict(), checkpoints.load(small_run).state_dict()
    for name, tensor in theirs.items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(ours[name], expected), name
    old, new = (
        json.loads((each / checkpoints.EXPERIMENT).read_text()) for each in (small_run, run)
    )
    assert new == {**old, "pieces_of": checkpoints.digest_of_newest(small_run)}
    assert checkpoints.latest(run).name == checkpoints.latest(small_run).name
    assert join_pieces(pieces[0].parent, run) == run, "again is no harm"


def test_the_command_line_writes_and_reads_them(small_run, tmp_path, capsys):
    assert (
        main(["export", str(small_run), "--out", str(tmp_path / "out"), "--format", "pieces"]) == 0
    )
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["weights-1-of-1.safetensors"]
    assert main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "run")]) == 0
    assert "two-room" in capsys.readouterr().out
    words = [
        "--episodes=4",
        "--solver=cem",
        "--objective=l2",
        "--candidates=8",
        "--elites=2",
        "--iterations=1",
    ]
    assert main(["evaluate", str(tmp_path / "run"), *words]) == 0
    assert (
        main(
            ["import", str(tmp_path / "out"), "--out", str(tmp_path / "other"), "--world", "push-t"]
        )
        == 2
    )
    assert "leave --data, --action-* and --world out" in capsys.readouterr().err


def test_what_half_precision_cannot_hold_stays_whole(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    weights = checkpoints.latest(run) / "weights.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = 1e6
    save_file(tensors, weights)
    joined = join_pieces(save_pieces(run, tmp_path / "pieces")[0].parent, tmp_path / "joined")
    assert torch.equal(checkpoints.load(joined).state_dict()[name], tensors[name])


def test_pieces_of_another_number_replace_the_old_ones(small_run, pieces, tmp_path):
    folder = pieces[0].parent
    (folder / "notes.txt").write_text("mine")
    save_pieces(small_run, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "notes.txt",
        "weights-1-of-1.safetensors",
    ]


def test_a_missing_a_foreign_and_a_damaged_piece_are_named(small_run, pieces, tmp_path):
    folder, second = pieces[0].parent, pieces[1]
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(ValueError, match="expected all pieces of one run"):
        join_pieces(folder, tmp_path / "run")
    tensors = load_file(pieces[0])
    save_file(tensors, second, metadata={"whole": "another"})
    with pytest.raises(ValueError, match=rf"{second.name} is of another run"):
        join_pieces(folder, tmp_path / "run")
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{second.name} is damaged"):
        join_pieces(folder, tmp_path / "run")
    for file in pieces:
        save_file(load_file(file) if file != second else {}, file, metadata={"whole": "x"})
    with pytest.raises(ValueError, match="expected a model and an experiment in its header"):
        join_pieces(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tensor_larger_than_a_piece_is_refused(small_run, tmp_path):
    with pytest.raises(ValueError, match="Allow larger pieces"):
        save_pieces(small_run, tmp_path / "pieces", HEADER_BYTES + 2000 + 4000)
