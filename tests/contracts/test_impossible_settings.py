"""Settings of which nothing can be made are refused before any work begins, in the same three parts
by every config there is."""

import dataclasses
import math
import re
import sys

import pytest

import lewm
from lewm import registry
from lewm.cli.main import main
from lewm.contracts import DataSpec, Statistics
from lewm.data.sources import Selection
from lewm.evaluation.tasks import Task
from lewm.experiments.experiment import CollectionConfig
from lewm.models.lewm import LeWMConfig
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.training.config import TrainingConfig
from lewm.training.fit import FittingConfig
from tests.support.project import train_command

CONFIGS = {
    "TrainingConfig": TrainingConfig(),
    "FittingConfig": FittingConfig(),
    "PlanningConfig": PlanningConfig(L2(), CEM()),
    "Task": Task(),
    "CollectionConfig": CollectionConfig(),
    "Selection": Selection(),
    **{
        f"{kind}: {name}": registry.load(kind, name)()
        for kind in ("models", "solvers", "objectives", "heads", "analyses")
        for name in registry.names(kind)
    },
}
"""Every config that a user can write, with its defaults."""

NUMBERS = [
    (name, field.name)
    for name, config in CONFIGS.items()
    for field in dataclasses.fields(config)
    if re.match(r"(tuple\[)?(int|float)", str(field.type))
]
WHOLE = [
    (name, field)
    for name, field in NUMBERS
    if "int" in str({f.name: f.type for f in dataclasses.fields(CONFIGS[name])}[field])
]
ENDLESS = {("solvers: mppi", "temperature")}
"""May be infinite: MPPI is then CEM."""

MAY_BE_ZERO = {
    "TrainingConfig": "learning_rate warmup weight_decay clip holdout holdout_seed workers seed",
    "FittingConfig": "learning_rate warmup weight_decay clip seed",
    "Task": "seed",
    "CollectionConfig": "seed",
    "Selection": "discrete_actions",
    "models: dreamer": (
        "unimix reconstruction_weight dynamics_weight representation_weight free_bits"
    ),
    "models: lewm": ("dropout sigreg_weight inverse_weight multistep_weight reconstruction_weight"),
    "models: pldm": (
        "dropout variance_weight covariance_weight slowness_weight time_variance_weight "
        "time_covariance_weight inverse_weight"
    ),
    "models: byol": "dropout momentum momentum_end",
    "models: vjepa": "dropout momentum momentum_end",
    "models: dino": "dropout momentum momentum_end centre_momentum view_weight crops",
    "models: dino-wm": "dropout resolution channels predictor_width",
    "models: vjepa2-ac": "dropout pretraining ema rollout_weight",
    "solvers: cem": "stop_spread",
    "solvers: gradient": "stop_spread",
    "solvers: icem": "stop_spread noise_exponent keep_fraction momentum",
    "solvers: mppi": "stop_spread",
    "solvers: predictive-sampling": "stop_spread",
    "objectives: l1": "intermediate",
    "objectives: l2": "intermediate",
    "objectives: temporal": "intermediate",
    "heads: temporal": "apart",
    "analyses: probing": "rollouts seed",
    "analyses: surprise": "after turn seed",
    "analyses: geometry": "seed",
    "analyses: decoding": "learning_rate seed",
    "analyses: planning": "seed",
    "analyses: economy": "paper_plans limit_s seed",
}
"""Config -> numbers of which 0 makes sense. A new number is refused at 0, or listed here."""


def refused(name, field, value):
    """By a message that names the field, says what it got, and what to do."""
    config, values = CONFIGS[name], [value]
    if isinstance(known := getattr(config, field), tuple):  # wherever it stands among several
        values = [(value,), (value, *known), (*known, value)]
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*, got .*\. [A-Z].*\.$"):
            dataclasses.replace(config, **{field: value})


def of(numbers, name):
    return [field for config, field in numbers if config == name]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_number_is_none_negative_infinite_or_a_word(name):
    for field in of(NUMBERS, name):
        for value in (math.nan, -1, -math.inf, "many", math.inf):
            if value != math.inf or (name, field) not in ENDLESS:
                refused(name, field, value)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_count_is_absurd_or_broken(name):
    for field in of(WHOLE, name):
        for value in (10**30, 2.5, *(() if field.endswith("seed") else (10**12,))):
            refused(name, field, value)


@pytest.mark.parametrize("name", CONFIGS)
def test_zero_is_refused_where_it_means_nothing(name):
    for field in of(NUMBERS, name):
        if field in MAY_BE_ZERO.get(name, "").split():
            dataclasses.replace(CONFIGS[name], **{field: 0})
        else:
            refused(name, field, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_seeds_fill_63_bits(name):
    for field in (field for field in of(WHOLE, name) if field.endswith("seed")):
        dataclasses.replace(CONFIGS[name], **{field: 2**63 - 1})
        refused(name, field, 2**63)


SHARES = [
    ("TrainingConfig", "warmup", 1.0),
    ("TrainingConfig", "holdout", 1.0),
    ("FittingConfig", "warmup", 1.0),
    ("models: dreamer", "unimix", 1.0),
    ("models: lewm", "dropout", 1.0),
    ("heads: temporal", "expectile", 1.0),
    ("solvers: icem", "momentum", 1.0),
    ("solvers: icem", "keep_fraction", 1.1),
    ("solvers: predictive-sampling", "shrink", 1.1),
    ("analyses: surprise", "turn", 1.1),
]


@pytest.mark.parametrize(("name", "field", "value"), SHARES)
def test_a_share_is_no_more_than_all(name, field, value):
    refused(name, field, value)


SPEC = DataSpec(16, 5, Statistics((0.5,) * 3, (0.2,) * 3, (0.0,), (1.0,)))


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_heads": 5},
        {"encoder_width": 10**6},
        {"predictor_mlp_dim": 10**6, "predictor_depth": 1000, "predictor_width": 10**5},
        {"sigreg_slices": 10**6, "latent_dim": 10**6},
        {"position": "sine"},
        {"stem": "cone"},
        {"patch_size": 7},
        {"patch_size": 1, "overlap": True},
        {"patch_size": 16, "stem": "conv", "overlap": True},
        {"encoder_width": 6, "encoder_heads": 2, "position": "sincos", "patch_size": 8},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_each_other_make_no_model(changes):
    with pytest.raises(ValueError, match=r"(must|needs?|unknown|expected) .*(got|Known).*\. ?"):
        dataclasses.replace(LeWMConfig(), **changes).build(SPEC)


def test_what_is_published_is_no_slip_of_the_hand():
    assert LeWMConfig.paper().weights_about < 10**8
    dataclasses.replace(LeWMConfig(), encoder_width=4096, encoder_depth=40, encoder_heads=32)


def test_elites_are_some_of_the_candidates():
    for name in registry.names("solvers"):
        config = registry.load("solvers", name)()
        if hasattr(config, "num_elites"):
            with pytest.raises(ValueError, match=r"num_elites must .* got 301\. A tenth"):
                dataclasses.replace(config, num_elites=301)


@pytest.mark.parametrize(
    "flags",
    [
        "--training.batch-size 1000000000000",
        "--training.updates -3",
        "--training.learning-rate nan",
        "--training.learning-rate inf",
        "--training.seed -1",
        "--training.seed 9223372036854775808",
        "--training.window 0",
        "--training.workers 100000",
        "--model.patch-size 0",
        "--model.latent-dim 0",
        "--model.encoder-depth 1000000000000",
        "--model.encoder-heads 7",
        "--model.sigreg-knots 1",
    ],
)
def test_train_refuses_before_anything_is_opened(flags, tmp_path, capsys):
    """There is no such file: that would be said second."""
    assert main(train_command(tmp_path / "none.h5", tmp_path / "run", *flags.split())) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"lewm train: .*(must|divide).*, got .*\. .*\.\n", said), said
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ devices

ASK = ["evaluate", "plan", "analyse", "fit", "economy"]


@pytest.mark.parametrize("name", ["xyz", "cuda:7", "CPU", "", "meta", "cuda:x"])
@pytest.mark.parametrize("command", ASK)
def test_a_device_that_is_none_is_refused_first(command, name, tmp_path, capsys, monkeypatch):
    """Before the run is opened, which is not there."""
    monkeypatch.chdir(tmp_path)
    assert main([command, "nothing", "--device", name]) == 2
    said = capsys.readouterr().err
    assert f"expected a device of this machine (cpu, or auto), got {name!r}" in said or (
        "cuda" in said and f"got {name!r}" in said
    )
    assert "lewm doctor" in said


@pytest.mark.parametrize("name", ["xyz", "gpus", ""])
def test_an_accelerator_that_is_none_is_refused(name, tmp_path, capsys):
    words = train_command(tmp_path / "none.h5", tmp_path / "run", f"--training.accelerator={name}")
    assert main(words) == 2
    assert f"unknown accelerator '{name}'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_notebook_is_told_what_works_there(small_data, tmp_path, monkeypatch):
    """Several devices are several processes of a script, and a notebook is none."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    config = TrainingConfig(updates=1, devices=2, batch_size=2, accelerator="cpu")
    with pytest.raises(ValueError, match=r"got 2: .*devices=1.*!lewm train"):
        lewm.train(LeWMConfig.tiny(), config, small_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
