"""`lewm.train` beside its plain twin: the same bits, whatever is configured."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from lewm.runs import checkpoints
from lewm.training import train as training
from lewm.training.train import train
from tests.support.plain_training import plain_training, rates
from tests.support.tiny import MODEL, SPEC, TRAINING, write

NUMBERS = ("loss", "prediction", "sigreg", "gradient_norm", "learning_rate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("twin") / "episodes.h5")


def weights(run):
    return load_file(checkpoints.latest(run) / "weights.safetensors")


def same(run, model, told):
    """Bit-equal weights, equal lines of the log, and the average for batch-norm's statistics."""
    found, expected = weights(run), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if "running" in name:
            torch.testing.assert_close(found[name], value, msg=name)
        elif "tracked" not in name:
            assert torch.equal(found[name], value), name
    logged = checkpoints.metrics(run)
    assert [line["update"] for line in logged] == list(range(1, len(told) + 1))
    for line, plain in zip(logged, told, strict=True):
        assert {n: line[n] for n in NUMBERS} == {n: pytest.approx(plain[n], 1e-5) for n in NUMBERS}


CASES = {
    "as it is": {},
    "without dropout": {"dropout": 0.0},
    "pooled": {"sigreg_pooled": True},
    "targets detached": {"stop_gradient": True},
    "other knots and weight": {"sigreg_knots": 12, "sigreg_weight": 0.7},
    "actions matter from the start": {"zero_modulation": False},
    "no batch norm": {"projector_norm": False},
    "another seed": {"seed": 5},
    "its own held-out episodes": {"holdout_seed": 7},
    "clipped always": {"clip": 0.05},
    "never clipped": {"clip": 1e6},
    "no decay": {"weight_decay": 0.0},
    "strong decay": {"weight_decay": 20.0},
    "batch over two epochs": {"batch_size": 31},
    "one frame seen": {"context": 1, "window": 3},
    "windows of three blocks": {"context": 3, "window": 4, "frameskip": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_training_is_its_plain_twin(name, data, tmp_path):
    changes = CASES[name]
    of_model = {f.name for f in dataclasses.fields(MODEL)}
    model = dataclasses.replace(MODEL, **{k: v for k, v in changes.items() if k in of_model})
    config = dataclasses.replace(
        TRAINING, **{k: v for k, v in changes.items() if k not in of_model}
    )
    train(model, config, data, tmp_path / "run")
    same(tmp_path / "run", *plain_training(model, config, data, rates(3e-3, 2, 8)))


def test_windows_longer_than_the_context_hold_several(data, tmp_path):
    """Where they overlap the order of additions differs, and so the last bits."""
    config = dataclasses.replace(TRAINING, window=6, updates=3)
    train(MODEL, config, data, tmp_path / "run")
    _, told = plain_training(MODEL, config, data, [3e-3, 3e-3, 3e-3 / 2])
    for line, plain in zip(checkpoints.metrics(tmp_path / "run"), told, strict=True):
        assert {n: line[n] for n in NUMBERS[:4]} == {
            n: pytest.approx(plain[n], 1e-3) for n in NUMBERS[:4]
        }


def test_some_updates_are_clipped_and_some_are_not(data):
    """Or the twin would show nothing of it."""
    norms = [line["gradient_norm"] for line in plain_training(MODEL, TRAINING, data, [3e-3] * 8)[1]]
    assert min(norms) < TRAINING.clip < max(norms)


def test_the_twin_s_rates_are_those_worked_out_by_hand():
    half = [1, 0.9330127018922193, 0.75, 0.5, 0.25, 0.0669872981077807]
    assert rates(1.0, 2, 8) == pytest.approx([0.5, 1.0, *half])
    assert rates(2.0, 4, 5) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize(
    ("warmup", "total", "growing"), [(0.25, 8, 2), (0.0, 4, 1), (0.01, 3, 1), (0.5, 5, 2)]
)
def test_the_rates_that_are_used_are_those(warmup, total, growing, data, tmp_path):
    """A warm-up has one update or more, and is rounded to whole ones."""
    config = dataclasses.replace(TRAINING, warmup=warmup, updates=total)
    train(MODEL, config, data, tmp_path / "run")
    used = [line["learning_rate"] for line in checkpoints.metrics(tmp_path / "run")]
    assert used == pytest.approx(rates(3e-3, growing, total), rel=1e-12)


@pytest.mark.parametrize("killed_after", [3, 5])
def test_a_training_that_was_killed_ends_as_its_twin(killed_after, data, tmp_path):
    """Dropout and directions are of the update, not of the process: from update 3 on it is as if
    nothing had happened."""

    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.stage == "train" and progress.done == killed_after:
            raise Killed

    config, run = dataclasses.replace(TRAINING, checkpoint_every=3), tmp_path / "run"
    with pytest.raises(Killed):
        train(MODEL, config, data, run, report=kill)
    assert int(checkpoints.latest(run).name) == 3
    train(MODEL, config, data, run)
    same(run, *plain_training(MODEL, config, data, rates(3e-3, 2, 8)))


def test_the_log_counts_the_seconds_of_every_process_and_the_speed_of_one(
    data, tmp_path, monkeypatch
):
    """An update takes a second; the first process was killed after update 2, the next after 4."""

    class Killed(BaseException):
        pass

    now, step = 0.0, training.Trainer.step

    def stepping(self, *arguments):
        nonlocal now
        now += 1
        return step(self, *arguments)

    def killing(last):
        def kill(progress):
            if progress.stage == "train" and progress.done == last:
                raise Killed

        return kill

    monkeypatch.setattr(training.Trainer, "step", stepping)
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    config, run = dataclasses.replace(TRAINING, checkpoint_every=2), tmp_path / "run"
    for last in (2, 4):
        with pytest.raises(Killed):
            train(MODEL, config, data, run, report=killing(last))
        now += 100  # nobody trains
    train(MODEL, config, data, run)
    lines = checkpoints.metrics(run)
    assert [line["seconds"] for line in lines] == list(range(1, 9))
    # the speed is that of the process which tells it
    assert [line["updates_per_second"] for line in lines] == [1.0] * 8


def test_a_model_begins_with_modulation_of_zero():
    """AdaLN-zero: a block begins as the identity, so no action matters yet; the ablation's do."""
    for zero in (True, False):
        config = dataclasses.replace(MODEL, zero_modulation=zero, dropout=0.0)
        torch.manual_seed(0)
        model = config.build(SPEC).eval()
        latents, actions = torch.randn(3, 2, 6), torch.randn(3, 2, 4)
        for block in model.predictor.blocks:
            modulation = block.modulation
            assert bool((modulation.weight == 0).all() and (modulation.bias == 0).all()) == zero
        still = model.predict(latents, actions)
        moved = model.predict(latents, actions + 1)
        assert torch.equal(still, moved) == zero
