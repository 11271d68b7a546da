"""The comparison of mixers: what hangs in front of the world, what is trained, and what is read."""

import dataclasses

import numpy as np
import torch

from lewm.analyses.probes.rollouts import Rollouts
from lewm.experiments import backbones
from lewm.experiments.pipeline import open_recipe_world
from lewm.files import write_json


def test_the_curtain_hides_its_columns_and_nothing_else():
    experiment = backbones.settings("two-room-tiny", 3, None, 7)
    plain = open_recipe_world(experiment, 2)
    plain.reset([0, 1])
    world = backbones.Curtained(plain)
    assert (world.num_envs, world.spec.look, plain.spec.look) == (2, "curtain", "published")
    behind = np.array([[112.0, 49.0], [40.0, 49.0]], np.float32)  # in the door, and in a room
    seen, open_air = world.render(behind), plain.render(behind)
    hidden = np.zeros(64, bool)
    hidden[22:42] = True
    assert (seen[:, :, hidden] == 128).all()
    assert np.array_equal(seen[:, :, ~hidden], open_air[:, :, ~hidden])
    assert not (seen[0] == seen[1]).all()
    empty = world.render(behind[:1] + np.float32(1))
    assert np.array_equal(seen[:1], empty), "where it is behind the curtain cannot be seen"


def test_windows_are_long_and_the_model_sees_all_that_came_before():
    experiment = backbones.settings("two-room-tiny", 3, 11, 7)
    training = experiment.training
    assert (training.window, training.frameskip, training.updates, training.seed) == (8, 3, 7, 3)
    assert experiment.model.context == 7
    assert (experiment.collection.episodes, experiment.collection.seed) == (11, 3)


def test_errors_are_read_beyond_the_training_window(monkeypatch):
    """Block 0 leads to the last frame of a training window; block b lies b beyond it."""
    n, H, D = 4, 21, 3
    g = np.random.default_rng(0)
    encoded = g.normal(size=(n, H, D))
    wrong = np.arange(H, dtype=float)[None, :, None]  # block b errs by b
    rolled = Rollouts(np.zeros((n, D)), encoded + wrong, encoded, np.zeros((n, H)), np.arange(n))
    monkeypatch.setattr(backbones, "roll_out", lambda *of: rolled)
    error = backbones.open_loop_error(None, None, [], 0)
    variance = encoded.var(axis=(0, 1)).mean()
    for b in (1, 5, 10, 20):
        np.testing.assert_allclose(error["of_variance"][str(b)], b**2 / variance)
        copied = np.square(encoded[:, b]).mean()
        np.testing.assert_allclose(error["of_copying"][str(b)], b**2 / copied)


def test_a_finished_row_is_not_trained_again(tmp_path):
    experiment = backbones.settings("two-room-tiny", 3, None, None)
    write_json(tmp_path / "mamba-3" / "row.json", {"mixer": "mamba"})
    assert backbones.row(experiment, "mamba", tmp_path, 4) == {"mixer": "mamba"}


def test_a_row_is_trained_and_measured(tmp_path):
    torch.manual_seed(0)
    experiment = backbones.settings("two-room-tiny", 0, 8, 1)
    training = dataclasses.replace(experiment.training, recalibration=1, batch_size=4)
    experiment = dataclasses.replace(experiment, training=training)
    found = backbones.row(experiment, "titans", tmp_path, 1)
    assert list(found["variants"]) == ["writing", "frozen"]
    assert abs(found["parameters"] / 543_942 - 1) < 0.02
    # by hand, of one candidate: 64 x (192 in, 384 modulation x 3, 384 qkv x 3, 12 gates x 3, 64 out
    # x 3, 288 of the MLP x 3, 256 hidden) + 256 x (192 out) + actions 6 x 10 + 10 x 256 + 256 x 64
    before = 64 * (192 + 3 * (384 + 384 + 12 + 64 + 288))
    before += 60 + 2560 + 256 * 64
    after = 64 * 256 + 256 * 192
    # 16 rows of the 6 frames before are read as well, for 100 candidates x 5 blocks
    products = before * (1 + 16 * 6 / 500) + after
    plain = 3 * 64 * (9 * 16 + 4 * 3)
    np.testing.assert_allclose(found["mflop_per_step"], (2 * products + plain) / 1e6)
    lines = backbones.as_table([found])
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| titans writing", "| titans frozen"]
