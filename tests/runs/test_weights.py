"""Weights pass one door: what is no plain finite number is refused by name, of the tensor and of
the file, when it is saved and when it is read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lewm.cli.main import main
from lewm.contracts import Statistics
from lewm.files import read_json, write_json
from lewm.runs import checkpoints, heads
from lewm.runs.pieces import join_pieces, save_pieces
from lewm.runs.published import build, export, read_checkpoint
from tests.support.published import checkpoint

NORM = "projector.1.running_var"


def spoilt(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


FLAWS = {
    "NaN": (spoilt(torch.nan), "holds NaN"),
    "infinity": (spoilt(-torch.inf), "holds infinity"),
    "variance": (spoilt(-1e-9), "holds a variance or a count below 0"),
    "half": (torch.Tensor.half, r"is \(\d+,\) float16, expected \(\d+,\) float32"),
    "whole": (torch.Tensor.long, r"is \(\d+,\) int64, expected \(\d+,\) float32"),
    "complex": (lambda t: t.to(torch.complex64), r"is \(\d+,\) complex64, expected"),
    "shape": (lambda t: t[:-1], r"is \(\d+,\) float32, expected \(\d+,\)"),
}


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def edit(file, name, change):
    tensors = load_file(file)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_runs_weights(flaw, run):
    change, said = FLAWS[flaw]
    edit(checkpoints.latest(run) / "weights.safetensors", NORM, change)
    with pytest.raises(ValueError, match=rf"weights\.safetensors.*{NORM} {said}"):
        checkpoints.load(run)


@pytest.mark.parametrize("flaw", ["NaN", "infinity", "variance"])
def test_no_command_uses_them(flaw, run, small_data, tmp_path, capsys):
    """All of them open a run by the same door."""
    edit(checkpoints.latest(run) / "weights.safetensors", NORM, FLAWS[flaw][0])
    before = sorted(path for path in run.rglob("*"))
    for words in (
        ["evaluate", "{run}", "--episodes=1"],
        ["plan", "{run}", "--out", "{out}.gif"],
        ["analyse", "{run}"],
        ["fit", "{run}"],
        ["export", "{run}", "--out", "{out}"],
        ["export", "{run}", "--out", "{out}", "--format=pieces"],
    ):
        assert main([word.format(run=run, out=tmp_path / "out") for word in words]) == 2, words
        assert NORM in capsys.readouterr().err
    assert sorted(path for path in run.rglob("*")) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flaw", ["NaN", "infinity", "variance"])
def test_they_are_not_saved_and_what_was_there_stays(flaw, run):
    model = checkpoints.load(run)
    before = (checkpoints.latest(run) / "weights.safetensors").read_bytes()
    with torch.no_grad():
        model.get_buffer(NORM).copy_(FLAWS[flaw][0](model.get_buffer(NORM)))
    for write in (
        lambda: checkpoints.save(run, 99, model),
        lambda: heads.save_head(run, "temporal", model, {}),
    ):
        with pytest.raises(ValueError, match=r"running_var .*(NaN|infinity|below 0)"):
            write()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000030"]
    assert (checkpoints.latest(run) / "weights.safetensors").read_bytes() == before
    assert not (run / "heads").exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("0/exp_avg", spoilt(torch.nan), "0/exp_avg holds NaN"),
        ("0/exp_avg_sq", spoilt(-1.0), "0/exp_avg_sq holds a variance"),
        ("0/step", spoilt(-1.0), "0/step holds a variance or a count"),
        ("0/exp_avg", lambda t: t.reshape(-1)[:3], "got 0/exp_avg"),
        ("0/exp_avg", torch.Tensor.int, "got 0/exp_avg"),
    ],
)
def test_what_the_optimiser_keeps(name, change, said, run):
    edit(checkpoints.latest(run) / "optimiser.safetensors", name, change)
    model = checkpoints.load(run)
    with pytest.raises(ValueError, match=rf"optimiser\.safetensors.*{said}"):
        checkpoints.restore(run, model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize("name", ["999/exp_avg", "x/exp_avg", "0/other", "0", "-1/exp_avg"])
def test_what_the_optimiser_never_kept(name, run):
    file = checkpoints.latest(run) / "optimiser.safetensors"
    save_file({**load_file(file), name: torch.zeros(())}, file)
    model = checkpoints.load(run)
    with pytest.raises(ValueError, match=rf"optimiser\.safetensors does not fit.*got {name}"):
        checkpoints.restore(run, model, torch.optim.AdamW(model.parameters()))


SPECIAL = {
    "sparse": (torch.Tensor.to_sparse, "is sparse"),
    "quantised": (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "is quantised",
    ),
    "complex": (lambda t: t.to(torch.complex64), "is complex"),
    "meta": (lambda t: t.to("meta"), "has no values"),
    "whole": (torch.Tensor.int, "is torch.int32, expected torch.float32"),
    "NaN": (spoilt(torch.nan), "holds NaN"),
    "variance": (spoilt(-1.0), "holds a variance"),
    "repeated": (lambda t: t[:1].clone().expand(len(t)), "holds fewer numbers than its shape says"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("kind", SPECIAL)
def test_published_weights(kind, tmp_path, capsys):
    change, said = SPECIAL[kind]
    folder = checkpoint(tmp_path / "published")
    tensors = torch.load(folder / "weights.pt", weights_only=True)
    name = next(name for name in tensors if name.endswith("projector.net.1.running_var"))
    tensors[name] = change(tensors[name])
    torch.save(tensors, folder / "weights.pt")
    out = tmp_path / "run"
    words = ["import", str(folder), "--out", str(out), "--action-mean=0", "--action-std=1"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'weights.pt'}: expected" in error
    assert said in error
    assert "running_var" in error
    assert not out.exists()


def test_they_are_not_exported(tmp_path):
    folder = checkpoint(tmp_path / "published")
    model = build(read_checkpoint(folder), (0.0,), (1.0,))
    model.get_buffer(NORM)[0] = torch.nan
    with pytest.raises(ValueError, match=r"weights\.pt.*running_var holds NaN"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pieces(run, tmp_path):
    pieces = save_pieces(run, tmp_path / "pieces")
    edit_keeping_header(pieces[0], NORM, spoilt(torch.nan))
    with pytest.raises(ValueError, match=rf"pieces: expected weights .*{NORM} holds NaN"):
        join_pieces(tmp_path / "pieces", tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def edit_keeping_header(file, name, change):
    tensors, told = checkpoints.read_safetensors(file)
    save_file({**tensors, name: change(tensors[name])}, file, metadata=told)


@pytest.mark.parametrize(
    ("place", "value"),
    [("action_std", 0.0), ("action_std", -1.0), ("pixel_std", 0.0), ("action_mean", None)],
)
def test_statistics_that_normalise_nothing(place, value, run):
    told = read_json(run / "model.json")
    told["spec"]["statistics"][place][0] = value
    write_json(run / "model.json", told)
    with pytest.raises(ValueError, match=r"model\.json does not describe a model"):
        checkpoints.load(run)
    with pytest.raises(ValueError, match="expected finite means and stds above 0"):
        Statistics((0.5,) * 3, (0.5,) * 3, (0.0,), (float("nan"),))


@pytest.mark.parametrize("name", ["latent_dim", "encoder_width", "predictor_mlp_dim"])
def test_absurd_sizes_are_refused_before_memory_is_asked_for(name, run):
    told = json.loads((run / "model.json").read_text())
    told["config"][name] = 2**40
    write_json(run / "model.json", told)
    with pytest.raises(ValueError, match=r"does not (fit its model\.json|describe a model)"):
        checkpoints.load(run)


def test_only_checkpoints_of_ours_are_removed(run, tmp_path):
    """Neither folders of other names, nor what a link leads to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "progress.json").write_text("precious")
    place = run / "checkpoints"
    (place / "00000001").symlink_to(outside)
    for name in ("backup", "00000030-mine", "best", "123"):
        (place / name).mkdir()
        (place / name / "progress.json").write_text("precious")
    (place / "notes.txt").write_text("precious")
    assert checkpoints.latest(run).name == "00000030"
    (place / "00000050").symlink_to(outside)
    assert checkpoints.latest(run).name == "00000030", "a link is no checkpoint of this run"
    (place / "00000050").unlink()
    checkpoints.save(run, 40, checkpoints.load(run))
    names = {path.name for path in place.iterdir()}
    assert names == {"00000001", "backup", "00000030-mine", "best", "123", "notes.txt", "00000040"}
    assert (outside / "progress.json").read_text() == "precious"


def test_damaged_metrics_name_their_line_and_a_last_one_may_be_cut(run):
    path = run / checkpoints.METRICS
    sound = path.read_text()
    rows = checkpoints.metrics(run)
    path.write_text(sound + '{"update": 3')
    assert checkpoints.metrics(run) == rows
    path.write_text(sound[:-1])
    assert checkpoints.metrics(run) == rows
    for bad, said in [
        ('{"update": 3', "delimiter"),
        ("[]", "not an object but list"),
        ('{"loss": 1.0}', "no such number"),
        ('{"update": 1.5}', "no such number"),
        ('{"update": 5, "loss": "low"}', 'loss "low"'),
        ('{"update": 5, "loss": null}', "loss null"),
        ('{"update": 5, "alarm": 3}', "alarm 3"),
        ('{"update": 5, "loss": NaN}', "NaN, which is no number"),
        ('{"update": ' + "1" * 5000 + "}", "digits"),
    ]:
        path.write_text(bad + "\n" + sound)
        with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 1, is damaged.*{said}"):
            checkpoints.metrics(run)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1, is damaged"):
            checkpoints.Log(run, 0)
