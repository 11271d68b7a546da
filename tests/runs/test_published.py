"""Published checkpoints become runs and runs become published checkpoints; whatever does not fit is
refused by name."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from lewm import registry
from lewm.cli.main import main
from lewm.contracts import DataSpec, Statistics
from lewm.experiments.recipes import load as load_recipe
from lewm.files import read_json
from lewm.models.lewm import LeWMConfig
from lewm.models.nn import layers
from lewm.runs import checkpoints
from lewm.runs.published import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build,
    export,
    import_run,
    read_checkpoint,
)
from lewm.runs.run import open_run
from tests.support.published import CONFIG, MEAN, STD, checkpoint, edited
from tests.support.reference_lewm import CONFIGS, Reference, inputs, shapes, weights

TINY_SEARCH = ["--candidates=8", "--elites=2", "--iterations=1"]


def model_of(tmp_path, **edits):
    return build(read_checkpoint(checkpoint(tmp_path, **edits)), MEAN, STD)


def small_model(spec=None, **fields):
    """A model of ours that the published form can hold, with batch-norm statistics worth
    keeping."""
    statistics = Statistics(IMAGENET_MEAN, IMAGENET_STD, MEAN, STD)
    sizes = {
        "patch_size": 8,
        "encoder_width": 16,
        "encoder_depth": 2,
        "encoder_heads": 2,
        "latent_dim": 24,
    }
    sizes |= {
        "predictor_width": 24,
        "predictor_depth": 2,
        "predictor_heads": 2,
        "predictor_head_dim": 8,
        "projector_dim": 20,
    }
    torch.manual_seed(0)
    config = LeWMConfig(
        **{**sizes, "predictor_mlp_dim": 28, "position": "sincos", "sigreg_weight": 0.5, **fields}
    )
    model = config.build(spec or DataSpec(32, 5, statistics))
    for norm in (part for part in model.modules() if isinstance(part, layers.BatchNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(1234)
    return model.eval()


def bits(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


# ------------------------------------------------------------------------------------------- import


@pytest.mark.parametrize("dialect", ["first", "second"])
def test_an_imported_run_computes_what_the_checkpoint_does(dialect, tmp_path):
    out = import_run(
        checkpoint(tmp_path / "c", dialect=dialect),
        tmp_path / "run",
        action_mean=MEAN,
        action_std=STD,
    )
    model, given = checkpoints.load(out), inputs(CONFIG)
    assert not model.training
    assert model.spec == DataSpec(42, 5, Statistics(IMAGENET_MEAN, IMAGENET_STD, MEAN, STD))
    assert read_json(out / "experiment.json")["imported"]["dialect"] == dialect
    expected = Reference(weights(CONFIG), CONFIG).encode(given.pixels)
    torch.testing.assert_close(model.encode(given.pixels).detach(), expected, rtol=1e-4, atol=1e-5)


def test_what_saving_adds_is_taken_off(tmp_path):
    """A name of its own, a trainer's wrapper and its prefix, half precision."""
    plain = model_of(tmp_path / "plain")
    prefixed = {f"model.{name}": tensor for name, tensor in weights(CONFIG).items()}
    wrapped = checkpoint(
        tmp_path / "a", {"state_dict": prefixed, "epoch": 3}, name="weights_epoch_10.pt"
    )
    assert (
        bits(build(read_checkpoint(wrapped), MEAN, STD))
        == bits(build(read_checkpoint(wrapped / "weights_epoch_10.pt"), MEAN, STD))
        == bits(plain)
    )
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in weights(CONFIG).items()
    }
    assert model_of(tmp_path / "half", tensors=half).encoder.cls.dtype == torch.float32


def test_frameskip_is_what_the_actions_leave_of_a_block(tmp_path):
    found = read_checkpoint(checkpoint(tmp_path))
    assert [build(found, (0.0,) * a, (1.0,) * a).spec.frameskip for a in (1, 2, 5, 10)] == [
        10,
        5,
        2,
        1,
    ]
    with pytest.raises(ValueError, match="divides that of the action block, 10, got 3"):
        build(found, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two-Room episodes of the small checkpoint's size."""
    path = tmp_path_factory.mktemp("data") / "episodes.h5"
    assert main(["collect", "two-room", "--out", str(path), "--episodes=6", "--image-size=42"]) == 0
    return path


@pytest.fixture
def trained(tmp_path):
    """A run that training left, of a model which the published form cannot hold."""
    run, model = tmp_path / "trained", small_model(overlap=True)
    checkpoints.claim(
        run, {"model": checkpoints.describe_model(model), "split": {"train": [0]}}, {}
    )
    checkpoints.save(run, 7, model)
    return run


def test_statistics_of_the_data_are_those_of_all_its_rows(recorded, tmp_path):
    model = checkpoints.load(import_run(checkpoint(tmp_path / "c"), tmp_path / "run", recorded))
    with h5py.File(recorded) as file:
        actions = file["action"][:]
    actions = actions[~np.isnan(actions).any(axis=1)]
    statistics = model.spec.statistics
    assert statistics.pixel_mean == IMAGENET_MEAN
    np.testing.assert_allclose(statistics.action_mean, actions.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(statistics.action_std, actions.std(axis=0), atol=1e-6)


def test_statistics_are_never_guessed(recorded, tmp_path):
    folder = checkpoint(tmp_path / "c")
    with pytest.raises(ValueError, match=r"--data FILE.*--action-mean and --action-std.*10"):
        import_run(folder, tmp_path / "run")
    for mean, std in (
        ((0.0,), ()),
        ((0.0,), (0.0,)),
        ((0.0,), (1.0, 1.0)),
        ((float("nan"),), (1.0,)),
    ):
        with pytest.raises(ValueError, match="a finite number in each"):
            import_run(folder, tmp_path / "run", action_mean=mean, action_std=std)
    assert not (tmp_path / "run").exists()
    # Given numbers go before those of data that the weights were not trained on.
    both = import_run(folder, tmp_path / "run", recorded, MEAN, STD)
    assert checkpoints.load(both).spec.statistics.action_mean == MEAN
    for text in (
        "{}",
        '{"action_mean": 3, "action_std": null}',
        '{"action_mean": ["x"], "action_std": [1]}',
    ):
        (folder / "statistics.json").write_text(text)
        with pytest.raises(ValueError, match=r"statistics.json\): expected a finite number"):
            import_run(folder, tmp_path / "other")


def test_a_run_without_a_training_is_evaluated_on_all_episodes_as_perhaps_seen(
    recorded, tmp_path, capsys
):
    run = str(tmp_path / "run")
    assert (
        main(["import", str(checkpoint(tmp_path / "c")), "--data", str(recorded), "--out", run])
        == 0
    )
    assert f"rows of {recorded}" in capsys.readouterr().out
    opened = open_run(run)
    assert (opened.own_data, opened.heldout, opened.world_name) == (
        None,
        tuple(range(6)),
        "two-room",
    )
    assert opened.planning == load_recipe("two-room-paper").planning
    fit, test = opened.fit_ids, opened.test_ids
    assert set(fit).isdisjoint(test)
    assert main(["evaluate", run, "--episodes=2", *TINY_SEARCH]) == 0
    assert "6 episodes perhaps seen in its training" in capsys.readouterr().out
    assert main(["plan", run, "--out", str(tmp_path / "plan.gif"), *TINY_SEARCH]) == 0


def test_an_imported_run_needs_data_from_somewhere_to_be_used(recorded, tmp_path, capsys):
    run = str(tmp_path / "run")
    numbers = ["--action-mean", "-0.1", "0.2", "--action-std", "0.5", "0.5"]
    assert (
        main(
            ["import", str(checkpoint(tmp_path / "c")), "--out", run, "--world=two-room", *numbers]
        )
        == 0
    )
    assert main(["evaluate", run, "--episodes=2"]) == 2
    assert "--data FILE" in capsys.readouterr().err
    assert open_run(run, recorded).own_data is None
    assert (
        main(["import", str(checkpoint(tmp_path / "c")), "--out", run, "--world=two-rom", *numbers])
        == 2
    )
    assert "Did you mean 'two-room'" in capsys.readouterr().err


def test_the_worlds_must_agree_and_other_runs_are_safe(recorded, trained, tmp_path):
    folder = checkpoint(tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"expected episodes of world 'push-t', got some of 'two-room'"
    ):
        import_run(folder, tmp_path / "run", recorded, world="push_t")
    before = (trained / "experiment.json").read_bytes()
    with pytest.raises(ValueError, match="holds another experiment"):
        import_run(folder, trained, recorded)
    assert (trained / "experiment.json").read_bytes() == before
    assert import_run(folder, tmp_path / "run", recorded) == import_run(
        folder, tmp_path / "run", recorded
    )


def test_the_hub_is_asked_for_the_two_files(tmp_path, monkeypatch):
    asked = []
    hub = SimpleNamespace(
        snapshot_download=lambda *a, **k: asked.append((a, k)) or str(checkpoint(tmp_path))
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert read_checkpoint("hf:somebody/lewm-pusht").dialect == "first"
    ((repository,), options) = asked[0]
    assert repository == "somebody/lewm-pusht"
    assert options["repo_type"] == "model"
    assert {"weights.pt", "config.json"} <= set(options["allow_patterns"])


def test_published_weights_plan_in_push_t(tmp_path, capsys):
    pytest.importorskip("pymunk")
    if "push-t" not in registry.names("worlds"):
        pytest.skip("no Push-T here")
    config = edited(encoder__image_size=64, encoder__patch_size=16)
    data, run = tmp_path / "push-t.h5", str(tmp_path / "run")
    collect = [
        "collect",
        "push-t",
        "--out",
        str(data),
        "--episodes=3",
        "--policy=random",
        "--image-size=64",
    ]
    assert main(collect) == 0
    folder = checkpoint(tmp_path / "c", weights(config, "second"), config)
    assert main(["import", str(folder), "--data", str(data), "--out", run]) == 0
    assert (
        main(["evaluate", run, "--episodes=2", "--json", str(tmp_path / "e.json"), *TINY_SEARCH])
        == 0
    )
    assert checkpoints.load(run).spec.frameskip == 5
    assert open_run(run).planning == load_recipe("push-t-paper").planning


# ------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("dialect", ["first", "second"])
def test_there_and_back_is_bit_equal(dialect, tmp_path):
    model = small_model()
    written = export(model, tmp_path / "c", dialect)
    back = import_run(tmp_path / "c", tmp_path / "run")  # the statistics travelled along
    assert bits(checkpoints.load(back)) == bits(model)
    assert checkpoints.load(back).spec == model.spec
    assert written.dialect == read_checkpoint(tmp_path / "c").dialect == dialect
    for tensor in written.tensors.values():
        tensor.zero_()
    assert bits(model) == bits(checkpoints.load(back)), "what is returned is not the model's memory"
    with pytest.raises(ValueError, match="without published weights"):
        export(model, tmp_path / "c")


def test_what_is_written_is_the_published_file(tmp_path):
    """Of names and shapes, and of the config from which the authors' library builds: 303 tensors at
    full size."""
    written = export(
        LeWMConfig.paper().build(replace(small_model().spec, image_size=224)), tmp_path / "paper"
    )
    assert {name: tuple(t.shape) for name, t in written.tensors.items()} == shapes(CONFIGS["full"])
    assert len(written.tensors) == 303
    for part, theirs in CONFIGS["full"].items():
        if isinstance(theirs, dict):
            ours = written.config[part]
            assert {k: ours[k] for k in theirs if k != "_target_"} == {
                k: v for k, v in theirs.items() if k != "_target_"
            }


@pytest.mark.parametrize("dialect", ["first", "second"])
def test_back_and_there_is_bit_equal(dialect, tmp_path):
    model = build(read_checkpoint(checkpoint(tmp_path / "a", dialect=dialect)), MEAN, STD)
    for other in ("first", "second"):
        export(model, tmp_path / other, other)
        loaded = torch.load(tmp_path / other / "weights.pt", weights_only=True)
        expected = weights(CONFIG, other)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_own_pixel_statistics_are_folded_in(tmp_path):
    """Others normalise by ImageNet's statistics, whatever a model was trained with; the latents
    must stay the same."""
    own = Statistics((0.9, 0.8, 0.7), (0.1, 0.2, 0.3), MEAN, STD)
    model = small_model(DataSpec(32, 5, own))
    export(model, tmp_path / "c")
    back = build(read_checkpoint(tmp_path / "c"), MEAN, STD)
    assert back.spec.statistics.pixel_mean == IMAGENET_MEAN
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 3, 3, 32, 32), np.uint8)
    )
    torch.testing.assert_close(back.encode(pixels), model.encode(pixels), rtol=1e-4, atol=1e-5)
    before, after = bits(model), bits(back)
    assert {name for name in before if before[name] != after[name]} == {
        "encoder.patches.weight",
        "encoder.patches.bias",
    }


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"overlap": True}, "overlap=True"),
        ({"projector_norm": False}, "projector_norm=False"),
        ({"predictor_width": 32}, r"predictor_width=32 \(there it is 24\)"),
        ({"predictor_heads": 1, "predictor_head_dim": 24}, "predictor_heads=1"),
    ],
)
def test_what_the_published_form_cannot_hold_is_named(fields, named, tmp_path):
    with pytest.raises(ValueError, match=f"cannot hold this model: {named}"):
        export(small_model(**fields), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_export_as_a_command(trained, tmp_path, capsys):
    out = tmp_path / "c"
    assert main(["export", str(trained), "--out", str(out)]) == 2
    assert "overlap=True" in capsys.readouterr().err
    run = import_run(checkpoint(tmp_path / "a"), tmp_path / "run", action_mean=MEAN, action_std=STD)
    assert (
        main(
            [
                "export",
                str(run),
                "--out",
                str(out),
                "--dialect=second",
                "--json",
                str(tmp_path / "x.json"),
            ]
        )
        == 0
    )
    assert read_checkpoint(out).dialect == "second"
    assert main(["export", str(run), "--out", str(out), "--dialect=third"]) == 2
    assert "Known: first, second" in capsys.readouterr().err
