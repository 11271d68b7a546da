"""Precision is measured where it can be, and never autocast where it is slow."""

import time
from pathlib import Path

import pytest
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
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: True)
    for ratio, expected in ((0.4, "bf16-mixed"), (0.9, "32-true"), (4.0, "32-true")):
        monkeypatch.setattr(time, "perf_counter", Clock(ratio))
        assert devices.fastest_precision("cpu") == expected


def test_other_accelerators_stay_in_float32():
    assert devices.fastest_precision(torch.device("meta")) == "32-true"


def test_a_cpu_that_has_no_bf16_is_not_timed(monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: False)
    monkeypatch.setattr(time, "perf_counter", Clock(0.1))
    assert devices.fastest_precision("cpu") == "32-true"


def test_what_devices_says_of_bf16_is_what_the_operator_does():
    """The operator that the engine uses at full size: it works exactly where `devices` says so."""
    weight = torch.ones(512, 512, dtype=torch.bfloat16)
    try:
        torch.ops.mkldnn._reorder_linear_weight(weight, 300)
        works = True
    except RuntimeError:
        works = False
    assert devices.multiplies_bf16("cpu") == works


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says it there")
def test_free_memory_is_in_bytes():
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = {name: int(told[name].split()[0]) for name in ("MemAvailable", "MemTotal")}
    found = devices.free_memory("cpu")
    assert 512 * kilobytes["MemAvailable"] < found < 1024 * kilobytes["MemTotal"]
