"""Run folders: what is written comes back, what is broken names itself, and a full disk costs
nothing that was there."""

import json
import resource
import signal

import pytest
import torch

from lewm.contracts import DataSpec, Statistics
from lewm.files import read_json, write_json
from lewm.planning.heads.temporal import TemporalConfig
from lewm.runs import checkpoints, heads
from lewm.runs.heads import head_names, load_head, save_head
from tests.support.models import SMALLEST as CONFIG


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
    before = (
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
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
    description = {
        "model": checkpoints.describe_model(model()),
        "training": {"seed": 0, "updates": 5},
    }
    checkpoints.claim(tmp_path, description, {"note": "first"})
    checkpoints.save(tmp_path, 1, model())
    checkpoints.claim(tmp_path, description, {"note": "second"})
    with pytest.raises(ValueError, match=r"training\.seed was 0, now 3"):
        checkpoints.claim(tmp_path, {**description, "training": {"seed": 3, "updates": 5}}, {})
    assert read_json(tmp_path / "experiment.json")["note"] == "first"


def test_a_setting_that_is_newer_than_the_run_is_at_its_default(tmp_path):
    """A run that was begun before a field existed goes on, unless the field is to change it."""
    own = model()
    description = {"model": checkpoints.describe_model(own)}
    checkpoints.claim(tmp_path, description, {})
    checkpoints.save(tmp_path, 1, own)
    told = read_json(tmp_path / "experiment.json")
    for name in ("predictor_mixer", "inverse_weight"):
        del told["model"]["config"][name]
    write_json(tmp_path / "experiment.json", told)
    checkpoints.claim(tmp_path, description, {})
    description["model"]["config"]["inverse_weight"] = 0.5
    with pytest.raises(ValueError, match=r"inverse_weight"):
        checkpoints.claim(tmp_path, description, {})


def test_a_range_of_actions_is_held_against_a_run_that_wrote_it_down(tmp_path):
    """A run that was begun before ranges were recorded goes on whatever they are."""
    own, described = tmp_path / "own", {"low": (-1.0, -1.0), "high": (1.0, 1.0)}
    for side, numbers in described.items():
        for told, now in ((None, numbers), (numbers, numbers), (numbers, (0.5, 0.5))):
            run = own / f"{side} {told} {now}"
            spec = {"statistics": {} if told is None else {f"action_{side}": told}}
            checkpoints.claim(run, {"model": {"spec": spec}}, {})
            checkpoints.save(run, 1, model())
            asked = {"model": {"spec": {"statistics": {f"action_{side}": now}}}}
            if told in (None, now):
                checkpoints.claim(run, asked, {})
            else:
                with pytest.raises(
                    ValueError, match=rf"action_{side} was \[.*, now \[0\.5, 0\.5\]"
                ):
                    checkpoints.claim(run, asked, {})


def test_the_log_is_cut_back_to_where_training_goes_on(tmp_path):
    log = checkpoints.Log(tmp_path, 0)
    for update in (10, 20, 30):
        log.write({"update": update})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4')  # what a kill leaves
    checkpoints.Log(tmp_path, 20).write({"update": 21})
    lines = [
        json.loads(line)["update"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [10, 20, 21]


HEAD = TemporalConfig(hidden_dim=8, metric_dim=4, oneway_dim=4)


def with_head(run):
    own, head = model(), HEAD.build(CONFIG.latent_dim, 10)
    checkpoints.save(run, 1, own)
    save_head(run, "temporal", head, {"metrics": {"loss": 0.5}})
    return own, head


def test_a_head_comes_back_frozen_and_bit_for_bit(tmp_path):
    assert head_names(tmp_path) == []
    own, head = with_head(tmp_path)
    assert head_names(tmp_path) == ["temporal"]
    other = load_head(tmp_path, "temporal", own)
    assert other.config == HEAD
    assert not other.training
    for mine, theirs in zip(head.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not theirs.requires_grad
    assert read_json(tmp_path / "heads" / "temporal" / "head.json")["metrics"] == {"loss": 0.5}
    again = HEAD.build(CONFIG.latent_dim, 10)
    save_head(tmp_path, "temporal", again, {})
    replaced = next(load_head(tmp_path, "temporal", own).parameters())
    assert torch.equal(replaced, next(again.parameters()))
    assert [file.name for file in (tmp_path / "heads").iterdir()] == ["temporal"]


def test_a_head_of_other_weights_does_not_count(tmp_path):
    with_head(tmp_path)
    new = model()
    checkpoints.save(tmp_path, 2, new)
    assert head_names(tmp_path) == []
    with pytest.raises(
        ValueError,
        match=r"expected a head 'temporal' .* got one of other weights. Run: lewm fit .* temporal",
    ):
        load_head(tmp_path, "temporal", new)
    with pytest.raises(ValueError, match=r"got none\. Run: lewm fit"):
        load_head(tmp_path, "amortised", new)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"width": 3}}, "describes no head this version knows"),
        ({"config": {"hidden_dim": 9}}, "does not fit"),
        ({"head": "amortised"}, "describes another head"),
    ],
)
def test_a_head_whose_description_is_wrong_names_its_file(change, said, tmp_path):
    own, _ = with_head(tmp_path)
    file = tmp_path / "heads" / "temporal" / "head.json"
    write_json(file, {**read_json(file), **change})
    with pytest.raises(ValueError, match=rf"temporal/.*{said}"):
        load_head(tmp_path, "temporal", own)


def test_an_interrupted_fitting_leaves_the_head_that_was_there(tmp_path, monkeypatch):
    own, head = with_head(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(heads, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_head(tmp_path, "temporal", HEAD.build(CONFIG.latent_dim, 10), {})
    kept = next(load_head(tmp_path, "temporal", own).parameters())
    assert torch.equal(kept, next(head.parameters()))
    assert [file.name for file in (tmp_path / "heads").iterdir()] == ["temporal"]
