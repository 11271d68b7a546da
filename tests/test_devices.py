"""Precision is measured where it can be, and never autocast where it is slow."""

import time

import torch

from lewm import devices


class Clock:
    """A clock on which bf16 products take `ratio` times as long as float32 ones."""

    def __init__(self, ratio: float) -> None:
        self.now, self.ratio, self.calls = 0.0, ratio, 0

    def __call__(self) -> float:
        laps_in_float32 = 10  # two readings a lap, five laps
        if self.calls % 2:
            self.now += 1.0 if self.calls < laps_in_float32 else self.ratio
        self.calls += 1
        return self.now


def test_bf16_is_taken_only_where_it_is_clearly_faster(monkeypatch):
    for ratio, expected in ((0.4, "bf16-mixed"), (0.9, "32-true"), (4.0, "32-true")):
        monkeypatch.setattr(time, "perf_counter", Clock(ratio))
        assert devices.fastest_precision("cpu") == expected


def test_other_accelerators_stay_in_float32():
    assert devices.fastest_precision(torch.device("meta")) == "32-true"
