"""Numbers of a benchmark are in the unit that stands beside them, and each is of the form that it
is named after: with clocks that say what a test wants."""

import pytest
import torch

from lewm.benchmarks import engine, sigreg


def numbers(row):
    return [row[name] for name in ("ours", "reference", "ratio")]


def test_a_speed_is_of_the_arithmetic_that_is_done(monkeypatch):
    """Ours takes 20 ms, the plain way 50."""
    config, taken = engine.SIZES["two-room-tiny"], iter([0.02, 0.05] * 3)
    monkeypatch.setattr(engine, "_seconds", lambda *_: next(taken))
    with torch.no_grad():
        rows = engine._compare("two-room-tiny", config, 80.0, 2)
        model = engine._model(config)
        asked = engine._question(model)
        done, plain = (engine.flops(way, *asked) / 1e9 for way in (model.engine(), model.rollout))
    assert done < plain
    assert [row["unit"] for row in rows] == ["ms", "GFLOP", "GFLOP/s"]
    round_, arithmetic, speed = map(numbers, rows)
    assert round_ == pytest.approx([20, 50, 2.5])
    assert arithmetic == pytest.approx([done, plain, plain / done])
    assert speed == pytest.approx([done / 0.02, 80.0, done / 0.02 / 80.0])


def test_time_per_frame_is_of_a_frame(monkeypatch):
    """2 us of ours and 6 of the reference for each of a batch's B x T frames."""

    def timed(sizes, pairs):
        frames = sizes[0] * sizes[1]
        return {"ours": 2e-3 * frames, "reference": 6e-3 * frames, "ratio": 3.0}

    monkeypatch.setattr(sigreg, "_time", timed)
    rows = sigreg._scaling((128, 4, 192, 1024), 5)
    assert [row["case"].split()[0] for row in rows] == [f"B={batch}" for batch in sigreg.BATCHES]
    for row in rows:
        assert row["unit"] == "us"
        assert numbers(row) == pytest.approx([2.0, 6.0, 3.0])
