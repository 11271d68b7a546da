"""Run folders: what is written comes back, what is broken names itself, and a full disk costs nothing that was there."""

import json
import resource
import signal

import pytest
import torch

from lewm import checkpoints
from lewm.contracts import DataSpec, Statistics
from lewm.models.lewm import LeWMConfig

CONFIG = LeWMConfig(
    patch_size=8,
    encoder_width=16,
    encoder_depth=1,
    encoder_heads=2,
    latent_dim=8,
    projector_dim=16,
    context=1,
    predictor_width=16,
    predictor_depth=1,
    predictor_heads=2,
    predictor_head_dim=8,
    predictor_mlp_dim=16,
    sigreg_slices=16,
)


def model():
    return CONFIG.build(DataSpec(16, 5, Statistics((0.5,) * 3, (0.3,) * 3, (0.1, 0.2), (1.0, 2.0))))


def trained(own):
    optimiser = torch.optim.AdamW(own.parameters(), lr=1e-3)
    for parameter in own.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    return optimiser


def test_model_and_optimiser_come_back_bit_for_bit(tmp_path):
    own = model()
    optimiser = trained(own)
    checkpoints.save(tmp_path, 7, own, optimiser, {"seconds": 1.5})
    other = model()
    fresh = torch.optim.AdamW(other.parameters(), lr=1e-3)
    assert checkpoints.restore(tmp_path, other, fresh) == {"update": 7, "seconds": 1.5}
    for mine, theirs in zip(own.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for index, slots in optimiser.state_dict()["state"].items():
        for slot, value in slots.items():
            assert torch.equal(value, fresh.state_dict()["state"][index][slot])
    assert checkpoints.load(tmp_path).spec == own.spec


def test_only_the_newest_whole_checkpoint_counts(tmp_path):
    own = model()
    checkpoints.save(tmp_path, 1, own)
    checkpoints.save(tmp_path, 2, own)
    (tmp_path / "checkpoints" / ".00000003.partial").mkdir()
    assert checkpoints.latest(tmp_path).name == "00000002"
    assert not (tmp_path / "checkpoints" / "00000001").exists()


def test_a_full_disk_is_an_os_error_and_leaves_the_last_checkpoint_whole(tmp_path):
    own = model()
    checkpoints.save(tmp_path, 1, own)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1][1]))
    try:
        with pytest.raises(OSError, match=r"weights\.safetensors"):
            checkpoints.save(tmp_path, 2, own)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])
    assert checkpoints.latest(tmp_path).name == "00000001"
    checkpoints.load(tmp_path)


def test_a_run_is_claimed_once_and_differences_are_named(tmp_path):
    description = {"model": checkpoints.describe_model(model()), "training": {"seed": 0, "updates": 5}}
    checkpoints.claim(tmp_path, description, {"note": "first"})
    checkpoints.save(tmp_path, 1, model())
    checkpoints.claim(tmp_path, description, {"note": "second"})
    with pytest.raises(ValueError, match=r"training\.seed was 0, now 3"):
        checkpoints.claim(tmp_path, {**description, "training": {"seed": 3, "updates": 5}}, {})
    assert checkpoints.read_json(tmp_path / "experiment.json")["note"] == "first"


def test_the_log_is_cut_back_to_where_training_goes_on(tmp_path):
    log = checkpoints.Log(tmp_path, 0)
    for update in (10, 20, 30):
        log.write({"update": update})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4')  # what a kill leaves
    checkpoints.Log(tmp_path, 20).write({"update": 21})
    lines = [json.loads(line)["update"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [10, 20, 21]
