"""A training stops at its first bad update, the last good checkpoint stays, and a rerun goes on
from there."""

import pytest
import torch

from lewm.cli.main import main
from lewm.runs import checkpoints
from lewm.training import train as training
from lewm.training.fit import FittingConfig, descend
from tests.support.project import train_command


def weights(run):
    return (checkpoints.latest(run) / "weights.safetensors").read_bytes()


def spoil(monkeypatch, what, at):
    """Let something go wrong in one update of a training."""
    step, forward = training.Trainer.step, training._Loss.forward

    def spoilt(self, update, total, batch):
        parameter = next(self.bare.parameters())
        if update == at and what == "loss":
            monkeypatch.setattr(training._Loss, "forward", infinite)
        if update == at and what == "gradient":
            parameter.register_hook(lambda gradient: gradient * torch.nan)
        if update == at and what == "weights":  # by finite gradients
            self.optimiser.register_step_post_hook(lambda *_: parameter.data.fill_(torch.inf))
        return step(self, update, total, batch)

    def infinite(*words):
        loss, *rest = forward(*words)
        return loss + torch.inf, *rest

    monkeypatch.setattr(training.Trainer, "step", spoilt)


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_the_first_bad_update_ends_it_and_a_rerun_goes_on_from_the_last_checkpoint(
    what, small_data, small_run, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    words = train_command(small_data, run)
    with monkeypatch.context() as patch:
        spoil(patch, what, at=23)
        assert main(words) == 2
    said = capsys.readouterr().err
    assert "training diverged at update 24: expected a loss, a gradient and weights" in said
    assert "lower --training.learning-rate" in said
    assert checkpoints.latest(run).name == "00000020"
    checkpoints.load(run)
    assert main(words) == 0
    assert weights(run) == weights(small_run)


def test_a_learning_rate_that_is_too_high_leaves_no_checkpoint(small_data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(train_command(small_data, run, "--training.learning-rate=1e30")) == 2
    assert "training diverged at update" in capsys.readouterr().err
    assert checkpoints.latest(run) is None


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_accelerator_is_asked_only_at_log_lines_and_before_saves(
    what, small_data, tmp_path, monkeypatch, capsys
):
    """Nothing is read from the device between them, and no bad update is saved."""
    asked, require = [], training.Trainer._require_finite
    monkeypatch.setattr(
        training.Trainer, "_require_finite", lambda self: asked.append(1) or require(self)
    )
    spoil(monkeypatch, what, at=21)
    step, counts = training.Trainer.step, []

    def counting(self, update, total, batch):
        before = len(asked)
        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, "_is_cpu", property(lambda _: False))
            found = step(self, update, total, batch)
        counts.append(len(asked) - before)
        return found

    monkeypatch.setattr(training.Trainer, "step", counting)
    run = tmp_path / "run"
    assert main(train_command(small_data, run)) == 2
    assert "training diverged at update 22" in capsys.readouterr().err
    assert counts == [0] * 25, "it is noticed at the next log line, by its own number"
    assert checkpoints.latest(run).name == "00000020"


def test_fitting_stops_when_its_loss_is_no_number():
    asked = []

    def loss(update):
        asked.append(update)
        return network.weight.sum() * (torch.nan if update == 13 else 1.0)

    network = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match="expected finite losses, got nan by update 20"):
        descend(network, loss, FittingConfig(updates=100))
    assert len(asked) == 20
