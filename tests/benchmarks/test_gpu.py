"""The benchmark of a GPU: rehearsed at tiny size, and what happens to a stage that fails, runs out
or has no time."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lewm.benchmarks import gpu
from lewm.cli.main import main
from lewm.evaluation.tasks import Task
from lewm.runs import checkpoints
from tests.support.evaluated import RATES, evaluation


@pytest.mark.slow
def test_the_dry_run_goes_through_every_stage(tmp_path, capsys, monkeypatch):
    """With time to spare, of which training takes half a minute: a busy machine fails nothing."""
    out, whole = tmp_path / "gpu", gpu._experiment

    def briefly(bench):
        experiment = whole(bench)
        minutes = min(experiment.training.minutes, 0.5)
        return replace(experiment, training=replace(experiment.training, minutes=minutes))

    monkeypatch.setattr(gpu, "_experiment", briefly)
    assert main(["bench", "gpu", "--dry", "--minutes", "4", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("stage | case | value")
    result = json.loads((out / "result.json").read_text())
    by_stage = {
        stage: [row for row in result["rows"] if row["stage"] == stage] for stage in gpu.STAGES
    }
    assert all(row["case"] != "the stage" for row in result["rows"]), (
        "no stage was skipped, ended or failed"
    )
    assert all(any(row["value"] is not None for row in rows) for rows in by_stage.values())
    assert not result["failed"]
    errors = [row for row in by_stage["correctness"] if row["bound"] is not None]
    assert len(errors) >= 8
    assert all(row["value"] <= row["bound"] for row in errors)
    (updates,) = (row for row in by_stage["speed"] if row["case"].startswith("updates of"))
    assert 0 < updates["value"] < updates["floor"], "nothing is faster than its floor"

    trained = json.loads((out / "work/run" / checkpoints.EXPERIMENT).read_text())
    assert trained["budget"]["updates"] == result["training"]["last"]["update"] > 50
    table = (out / "result.md").read_text()
    assert table.count("\n| evaluate |") == len(by_stage["evaluate"])
    assert "| offset 25 | agent |" in table

    # The weights travel in small files, and are a run again; the same command goes on and trains
    # nothing anew.
    run = tmp_path / "run"
    assert main(["import", str(out), "--out", str(run)]) == 0
    assert f"{trained['budget']['updates']:,} updates" in capsys.readouterr().out
    before = (checkpoints.latest(out / "work/run") / "weights.safetensors").read_bytes()
    only = ["--only", "collect", "train", "save"]
    assert main(["bench", "gpu", "--dry", "--out", str(out), *only]) == 0
    again = json.loads((out / "result.json").read_text())
    assert {row["stage"] for row in again["rows"]} == {"collect", "train", "save"}
    assert again["command"].endswith("--only collect train save")
    assert (checkpoints.latest(out / "work/run") / "weights.safetensors").read_bytes() == before


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """A run of the benchmark whose stages are replaced."""

    def measure(stages, minutes=1.0, only=()):
        monkeypatch.setattr(
            gpu, "_STAGES", {name: stages.get(name, lambda bench: None) for name in gpu.STAGES}
        )
        rows = []
        return gpu.measure(tmp_path / "out", minutes, dry=True, only=only, emit=rows.append), rows

    return measure


def test_what_ends_a_stage_ends_no_other(staged, tmp_path):
    reached = []

    def full(bench):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    def broken(bench):
        bench.add("before", 1.0, "s")
        raise ZeroDivisionError("by zero")

    def late(bench):
        raise gpu.OutOfTime("the time was used up")

    result, rows = staged(
        {"facts": full, "correctness": broken, "speed": late, "save": reached.append}
    )
    assert len(reached) == 1
    said = {row.stage: row.remark for row in rows if row.case == "the stage"}
    assert said == {
        "facts": "ended, the device's memory is too small for it: CUDA out of memory",
        "correctness": "failed: by zero",
        "speed": "ended: the time was used up",
    }
    assert result["failed"] == ["correctness"]
    on_disk = json.loads((tmp_path / "out/result.json").read_text())
    assert "ZeroDivisionError" in on_disk["errors"]["correctness"]
    assert [row["case"] for row in on_disk["rows"] if row["stage"] == "correctness"] == [
        "before",
        "the stage",
    ]


def test_shares_of_the_time(staged, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    given = {}

    def stage(name, takes):
        def carry_out(bench):
            nonlocal now
            given[name] = round(bench.left(), 6)
            now += takes

        return carry_out

    takes = dict.fromkeys(gpu.STAGES, 0.0) | {"speed": 15.0, "train": 60.0}
    staged({name: stage(name, seconds) for name, seconds in takes.items()}, minutes=2)
    whole, shares = 120.0, gpu.SHARES
    for name in ("facts", "correctness", "speed", "collect", "evaluate", "probe", "save"):
        assert given[name] == pytest.approx(whole * shares[name]), (
            "a stage has its share, whatever others leave"
        )
    later = shares["evaluate"] + shares["probe"] + shares["save"]
    assert given["train"] == pytest.approx(whole * (1 - later) - 15.0), (
        "training has all that is left"
    )
    assert sum(shares.values()) < 0.7


def test_a_stage_whose_time_is_used_up_is_skipped_with_a_word(staged, monkeypatch):
    now = 0.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)

    def forever(bench):
        nonlocal now
        now += 600.0

    result, rows = staged({"facts": forever})
    skipped = [row.stage for row in rows if row.remark == "skipped: its time is used up"]
    assert skipped == list(gpu.STAGES[1:-1]), "but the weights are saved: they cost a second"
    assert not result["failed"], "no time is no failure"


def test_a_case_that_takes_too_long_is_skipped_with_a_word(staged):
    def long(bench):
        assert bench.wants("short", 0.1)
        assert not bench.wants("long", 10_000)

    _, rows = staged({"facts": long})
    assert [row.case for row in rows] == ["long"]
    assert "skipped: it takes some 10000 s" in rows[0].remark


def test_only_the_stages_that_are_named(staged, monkeypatch):
    monkeypatch.setattr(gpu.time, "monotonic", lambda: 7.0)
    done = []
    stages = {
        name: (lambda bench, name=name: done.append((name, bench.left()))) for name in gpu.STAGES
    }
    staged(stages, minutes=1, only=("save", "facts"))
    assert [name for name, _ in done] == ["facts", "save"]
    staged({**stages}, minutes=1, only=("train",))
    assert done[-1] == ("train", 60.0)
    with pytest.raises(ValueError, match=r"unknown stage 'fact'\. Known: facts, "):
        staged({}, only=("fact",))


def test_errors_above_their_bounds_fail_and_nan_is_above_any():
    row = gpu.Row("correctness", "an error", 2e-3, "relative", bound=1e-3)
    assert row.failed
    assert row.cells[-1] == "ABOVE its bound of 1e-03"
    assert gpu.Row("correctness", "an error", math.nan, bound=1e-3).failed
    assert not gpu.Row("correctness", "an error", 1e-3, bound=1e-3).failed
    assert not gpu.Row("correctness", "none", None, bound=1e-3).failed
    assert not gpu.Row("speed", "a speed", 1e9).failed


def test_ratios_say_how_many_times_better():
    faster = gpu.Row("speed", "updates", 40.0, "1/s", plain=20.0, floor=160.0)
    assert faster.cells[4:8] == ("20", "2.00x", "160", "0.25x")
    shorter = gpu.Row("speed", "SIGReg", 1.0, "ms", plain=14.0, higher=False)
    assert shorter.cells[4:6] == ("14", "14.00x")


def test_a_machine_or_a_time_that_does_not_do_is_refused_with_what_does(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    assert "expected a CUDA device with a driver that PyTorch accepts, got none" in (
        said := capsys.readouterr().err
    )
    assert "lewm bench gpu --dry" in said
    assert main(["bench", "gpu", "--dry", "--minutes", "0.2", "--out", str(tmp_path)]) == 2
    assert "expected 1 minutes or more, got 0.2" in capsys.readouterr().err
    assert main(["bench", "gpu", "sigreg"]) == 2
    assert "'gpu' alone" in capsys.readouterr().err
    assert main(["bench", "sigreg", "--dry"]) == 2
    assert "--dry with the benchmark 'gpu'" in capsys.readouterr().err

    def old_driver():
        import warnings

        warnings.warn(
            "The NVIDIA driver on your system is too old (found version 11040).", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    assert "driver on your system is too old (found version 11040)" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6_000_000_000, 8_000_000_000))
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    assert "got 6.0 of 8.0 GB" in (said := capsys.readouterr().err)
    assert "--training.batch-size 32" in said


def test_the_plain_loss_is_the_models_own():
    """The plain form must not do less: same latents, same predictions, a SIGReg of other directions
    alone."""
    bench = gpu.Bench(
        gpu.dry_size(), torch.device("cpu"), None, 1.0, 0, lambda row: None, lambda *_: None
    )
    model, batch = gpu._model(bench).eval(), gpu._batch(bench, 6)
    plain = gpu._plain_loss(model, batch.pixels, batch.actions)
    ours = model.loss(batch, torch.Generator().manual_seed(0))
    assert float((plain - ours.terms["prediction"]).detach()) == pytest.approx(
        model.config.sigreg_weight * float(ours.terms["sigreg"].detach()), rel=0.2
    )


@pytest.mark.gpu
def test_the_host_waits_for_nothing_between_two_lines_of_the_log(tmp_path):
    rows = []
    bench = gpu.Bench(
        gpu.dry_size(), torch.device("cuda", 0), tmp_path, 1.0, 0, rows.append, lambda *_: None
    )
    bench.told["command"] = "a test"
    bench.until = bench.began + 600
    bench.work.mkdir()
    gpu._waits(bench)
    assert rows[-1].value == 0, rows[-1].remark


def bench_of(tmp_path):
    rows = []
    bench = gpu.Bench(
        gpu.dry_size(), torch.device("cpu"), tmp_path, 1.0, 5, rows.append, lambda *_: None
    )
    bench.told["command"], bench.until = "a test", bench.began + 1e6
    bench.work.mkdir()
    return bench, rows


def test_an_updates_arithmetic_is_that_of_its_windows(tmp_path):
    """As counted on other windows, and per window the same."""
    bench, _ = bench_of(tmp_path)
    model, batch = gpu._model(bench), gpu._batch(bench, 4)
    generator = torch.Generator().manual_seed(0)
    found = gpu.count_flops(lambda: model.loss(batch, generator).total.backward())
    windows = bench.size.experiment.training.batch_size
    assert gpu._update_flops(bench) == pytest.approx(found / 4 * windows, rel=1e-3)


def test_what_is_measured_of_a_model_is_measured_on_what_it_never_saw(tmp_path, monkeypatch):
    """Success, and the probe: fitted on one side, tested on the other, with the bench's seed."""
    bench, rows = bench_of(tmp_path)
    split, seen = {"train": [0, 2, 3], "heldout": [1, 4]}, {}
    trained = {"split": split, "precision": "32-true"}
    monkeypatch.setattr(gpu, "_run", lambda _: ("model", nullcontext("episodes"), trained))
    monkeypatch.setattr(gpu, "open_world", lambda *_, **__: None)
    monkeypatch.setattr(gpu, "facts", lambda *_: {})

    class Found(SimpleNamespace):
        def to_json(self):
            return {"variables": {}}

    def play(model, planning, world, episodes, held_out, task, report):
        seen["played"] = model, held_out, task
        return evaluation(task)

    def probe(self, run):
        seen["probed"] = self.seed, run.model, run.fit_ids, run.test_ids
        control = {"random encoder": SimpleNamespace(r=0.25)}
        return Found(variables={"x": SimpleNamespace(r=0.75, controls=control)})

    monkeypatch.setattr(gpu, "evaluate", play)
    monkeypatch.setattr(gpu.Probing, "run", probe)
    bench.stage = "evaluate"
    gpu._evaluate(bench)
    assert seen["played"] == ("model", [1, 4], Task.along(25, bench.size.pairs, seed=5))
    found = evaluation()
    for row, policy in zip(rows, RATES, strict=False):
        assert row.case == f"{policy}: success, strict"
        assert row.value == 100 * found.score(policy, strict=True).rate
        assert row.remark.endswith(f"paper's protocol {found.score(policy)}")
    assert (rows[-1].case, rows[-1].value) == ("plans in the evaluation", 8 / 2.0)
    gpu._probe(bench)
    assert seen["probed"] == (5, "model", [0, 2, 3], [1, 4])
    assert (rows[-1].value, rows[-1].remark[:5]) == (0.75, "0.250")
