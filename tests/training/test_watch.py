"""The collapse alarm: what it hears in numbers of runs that did and did not collapse, at any scale;
and what copying the last frame would err."""

import math

import pytest
import torch

from lewm.models.nn import losses
from lewm.training.watch import alarm_of

# Two-Room at 64 px, 120 episodes, seed 0, after 200 of 200 updates of 32 windows: prediction loss,
# error of copying, effective rank. The log of 2026-11-27 has them all.
HEALTHY = {
    "base": (0.0315, 0.176, 4.09),
    "two dimensions": (0.0142, 0.0948, 1.99),
}
COLLAPSED = {
    "lambda 0": (1.04e-4, 4.22e-5, 3.43),
    "lambda 0.01": (2.00e-4, 2.12e-4, 2.04),
    "no batch norm": (1.49e-7, 1.58e-7, 4.88),
    "one dimension, std 0.94": (0.00935, 0.0452, 1.0),
}


def heard(prediction, copying, rank, update=200, total=200):
    metrics = {"prediction": prediction, "copying": copying, "effective_rank": rank}
    return alarm_of(metrics, update, total)


@pytest.mark.parametrize("scale", [1.0, 0.15, 1e-3, 30.0])
def test_it_rings_for_what_collapsed_and_for_nothing_else_at_any_scale(scale):
    """The latents of "base" at std .15 plan exactly as they do at .93."""
    for prediction, copying, rank in HEALTHY.values():
        assert not heard(scale**2 * prediction, scale**2 * copying, rank)
    for prediction, copying, rank in COLLAPSED.values():
        assert "collapsed" in heard(scale**2 * prediction, scale**2 * copying, rank)


def test_a_line_is_a_collapse_however_well_it_is_predicted_and_however_wide_it_is():
    assert "rank of 1.00" in heard(0.0, 0.49, 1.0 - 1e-6)
    assert not heard(0.0, 0.49, 1.01)


def test_no_prediction_is_a_collapse_whatever_the_rank():
    assert "1 times as much as copying" in heard(0.1, 0.1, 150.0)
    assert not heard(0.09, 0.1, 150.0)


def test_a_point_and_numbers_that_are_none_are_no_health():
    assert heard(0.0, 0.0, 1.0)
    assert heard(1e-9, 0.0, 1.0)
    assert heard(math.nan, 0.1, 4.0)
    assert heard(0.01, 0.1, math.nan)


@pytest.mark.parametrize(
    ("total", "from_"), [(4, None), (99, None), (100, 100), (200, 100), (400, 100), (4000, 1000)]
)
def test_latents_have_a_quarter_of_the_run_and_100_updates_to_unfold(total, from_):
    """A run of a few updates has not collapsed: it has not been trained."""
    rung = [u for u in range(1, total + 1) if heard(*COLLAPSED["lambda 0"], update=u, total=total)]
    assert rung == ([] if from_ is None else list(range(from_, total + 1)))


def test_a_model_without_such_a_loss_is_not_judged():
    assert alarm_of({}, 500, 500) == ""
    assert alarm_of({"loss": 1.0}, 500, 500) == ""
    other = {"reconstruction": 1.0, "copying": 0.1, "effective_rank": 1.0}
    assert alarm_of(other, 500, 500) == ""


def test_copying_is_the_error_of_the_frame_before_in_time_and_of_nothing_else():
    latents = torch.tensor([[[0.0, 0], [1, 0], [1, 2]], [[9, 9], [9, 9], [9, 9]]])
    assert float(losses.copying(latents)) == pytest.approx((1 + 0 + 0 + 4) / 8)
    assert not losses.copying(latents.requires_grad_()).requires_grad
    latents = latents.detach()
    copied = losses.prediction(latents[:, :-1], latents[:, 1:])  # what it is compared with
    assert float(losses.copying(latents)) == pytest.approx(float(copied))
    half = losses.copying(latents.bfloat16())
    assert half.dtype == torch.float32


def test_every_training_logs_it(small_run):
    import json

    from lewm.runs import checkpoints

    lines = [json.loads(x) for x in (small_run / checkpoints.METRICS).read_text().splitlines()]
    assert all(line["copying"] > 0 for line in lines)
