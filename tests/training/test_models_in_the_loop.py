"""`lewm.train` beside a plain loop, for every model: what follows, when, and towards which end; one
schedule per stage; a pace per part; the draws of every update."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from lewm import registry
from lewm.contracts import DataSpec
from lewm.data.episodes import Episodes
from lewm.data.readers import open_windows
from lewm.data.split import split, statistics
from lewm.runs import checkpoints
from lewm.training.train import train
from tests.support.plain_training import DIRECTIONS, DROPOUT, rates, seed_of
from tests.support.small_models import SMALL
from tests.support.tiny import TRAINING, write

UPDATES = 6
HOW = dataclasses.replace(TRAINING, updates=None, epochs=0.4, warmup=0.4, batch_size=4, clip=0.5)
"""Six updates: 0.4 of 60 windows, four at a time."""

NOISE = ("running", "tracked", "qkv.bias", "encoder.out.bias")
"""Statistics, which are estimated at the end, and biases that change nothing (of keys, before a
batch norm): their gradient is rounding, and Adam makes steps of it."""

CASES = {
    "lewm": ({}, rates(3e-3, 2, UPDATES)),
    "pldm": ({}, rates(3e-3, 2, UPDATES)),
    "byol": ({"momentum_end": 0.99, "predictor_pace": 3.0}, rates(3e-3, 2, UPDATES)),
    "vjepa": ({}, rates(3e-3, 2, UPDATES)),
    "dino": ({"momentum_end": 0.5, "predictor_pace": 0.5}, rates(3e-3, 2, UPDATES)),
    "dino-wm": ({"dropout": 0.3}, rates(3e-3, 2, UPDATES)),
    "dreamer": ({}, rates(3e-3, 2, UPDATES)),
    # two updates of the encoder, four of the predictor
    "vjepa2-ac": ({"pretraining": 0.3}, rates(3e-3, 1, 2) + rates(3e-3, 2, 4)),
}
"""Settings of its own, and the learning rate of every update."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("loop") / "episodes.h5", size=32)


def plainly(config, data, schedule):
    with Episodes.open(data) as episodes:
        fit = split(len(episodes), HOW.holdout, HOW.seed).train
        known = statistics(episodes, fit, seed=HOW.seed)
        order = {"batch_size": HOW.batch_size, "seed": HOW.seed, "mode": "resident"}
        windows = open_windows(episodes, fit, HOW.window, HOW.frameskip, known, **order)
        torch.manual_seed(HOW.seed)
        model = config.build(DataSpec(episodes.image_size, HOW.frameskip, known))
        pace = getattr(config, "predictor_pace", 1.0)
        quick = ("predictor.", "predictor_projector.", "action_encoder.")
        named = list(model.named_parameters())
        parts = [[p for n, p in named if n.startswith(quick) == which] for which in (False, True)]
        adamw = [
            (torch.optim.AdamW(part, weight_decay=HOW.weight_decay), share)
            for part, share in zip(parts, (1.0, pace), strict=True)
            if part
        ]
        told = []
        for update, rate in enumerate(schedule):
            model.train()
            batch = windows.batch(update)
            torch.manual_seed(seed_of(HOW.seed, update, DROPOUT))
            draws = torch.Generator().manual_seed(seed_of(HOW.seed, update, DIRECTIONS))
            model.zero_grad()
            found = model.loss(batch, draws)
            found.total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), HOW.clip)
            for optimiser, share in adamw:
                optimiser.param_groups[0]["lr"] = rate * share
                optimiser.step()
            if hasattr(model, "follow"):
                with torch.no_grad():
                    model.follow(update, len(schedule))
            z = found.latents
            told.append(
                {name: float(value.detach()) for name, value in found.terms.items()}
                | {"learning_rate": rate, "loss": float(found.total.detach())}
                | {"copying": float((z[:, 1:] - z[:, :-1]).square().mean())}
                | {"latent_std": float(z.flatten(0, 1).std(dim=0, correction=0).mean())}
            )
    return model, told


def test_every_model_is_looked_at():
    assert sorted(CASES) == registry.names("models")


@pytest.mark.parametrize("name", CASES)
def test_a_training_is_a_plain_loop(name, data, tmp_path):
    changes, schedule = CASES[name]
    kind = registry.load("models", name)
    if "projector_norm" in kind.__dataclass_fields__:
        changes = changes | {"projector_norm": False}
    config = kind(**SMALL[name] | {"context": 1} | changes)
    train(config, HOW, data, tmp_path)
    model, told = plainly(config, data, schedule)
    found = load_file(checkpoints.latest(tmp_path) / "weights.safetensors")
    for key, value in model.state_dict().items():
        if not any(part in key for part in NOISE):
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-5, msg=key)
    logged = checkpoints.metrics(tmp_path)
    assert [line["update"] for line in logged] == list(range(1, UPDATES + 1))
    for line, plain in zip(logged, told, strict=True):
        assert {key: line[key] for key in plain} == pytest.approx(plain, rel=1e-3, abs=1e-6)
