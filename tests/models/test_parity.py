"""The published model and ours are one function: against a plain second implementation, and against
the authors' own outputs.

The authors' outputs are small arrays in `golden`, made by `golden/make.py` with their code on the
same seeded weights.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from lewm.contracts import Batch
from lewm.planning.objectives.l2 import L2
from lewm.runs.published import Published, build
from tests.support.reference_lewm import CONFIGS, Reference, inputs, weights

GOLDEN = Path(__file__).parent.parent / "golden"
EXACT = 1e-5
"""Largest difference, relative to the largest number; float32 itself accounts for about 1e-6."""

CASES = [("small", "first"), ("small", "second"), ("full", "first")]


def ours(size, dialect):
    """The imported model, without dropout: there is no comparing of different random numbers."""
    config = {**CONFIGS[size], "predictor": {**CONFIGS[size]["predictor"], "dropout": 0.0}}
    published = Published(Path("weights.pt"), weights(config, dialect), config, dialect)
    return build(published, action_mean=(0.0, 0.0), action_std=(1.0, 1.0))


def outputs(model, given, monkeypatch):
    """Everything that is compared, by the names in the golden files."""
    with torch.no_grad():
        latents = model.encode(given.pixels)
        found = {"latents": latents}
        for k in (1, 2, 3):
            found[f"rollout_{k}"] = model.rollout(
                latents[:, 3 - k : 3], given.plans[:, 0, 3 - k : 2], given.plans[:, :, 2:]
            )
        found["cost"] = L2().cost(found["rollout_1"], model.encode(given.goal)[:, 0])
    monkeypatch.setattr("lewm.models.lewm.draw_directions", lambda *_: given.directions)
    return found | model.train().loss(Batch(given.pixels, given.blocks)).terms


def difference(actual, expected):
    expected = torch.as_tensor(np.asarray(expected))
    assert actual.shape == expected.shape
    assert expected.abs().max() > 1e-3
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("size", "dialect"), CASES)
def test_equal_to_the_authors_code(size, dialect, monkeypatch):
    with torch.no_grad():
        found = outputs(ours(size, dialect), inputs(CONFIGS[size]), monkeypatch)
    with np.load(GOLDEN / f"{size}.npz") as golden:
        assert set(golden) == set(found)
        assert {
            name: d for name in found if (d := difference(found[name], golden[name])) > EXACT
        } == {}


@pytest.mark.parametrize(
    ("size", "dialect"), [*CASES[:2], pytest.param("full", "second", marks=pytest.mark.slow)]
)
def test_equal_to_a_plain_implementation(size, dialect, monkeypatch):
    config, model = CONFIGS[size], ours(size, dialect)
    given = inputs(config, batch=2, seed=1)
    tensors = weights(config, dialect)
    reference, (B, N) = Reference(tensors, config), given.plans.shape[:2]
    z, goal = reference.encode(given.pixels), reference.encode(given.goal)
    expected = {"latents": z}
    for k in (1, 2, 3):
        plans = [
            [torch.cat([given.plans[b, 0, 3 - k : 2], given.plans[b, n, 2:]]) for n in range(N)]
            for b in range(B)
        ]
        ends = [
            torch.stack([reference.rollout(z[b, 3 - k : 3], plan) for plan in plans[b]])
            for b in range(B)
        ]
        expected[f"rollout_{k}"] = torch.stack(ends)
    expected["cost"] = ((expected["rollout_1"][:, :, -1] - goal) ** 2).sum(dim=-1)

    # The loss and what it does to some tensor of every part.
    traced = {
        name: tensor.clone().requires_grad_()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    prediction, sigreg = Reference({**tensors, **traced}, config, training=True).loss(
        given.pixels, given.blocks, given.directions
    )
    (prediction + 0.1 * sigreg).backward()
    found = outputs(model, given, monkeypatch)
    (found["prediction"] + 0.1 * found["sigreg"]).backward()
    pairs = {
        "encoder.embeddings.position_embeddings": model.encoder.position,
        "encoder.embeddings.patch_embeddings.projection.weight": model.encoder.patches.weight,
        "projector.net.0.weight": model.projector[0].weight,
        "predictor.pos_embedding": model.predictor.position,
        "predictor.transformer.layers.0.attn.to_qkv.weight": model.predictor.blocks[
            0
        ].attention.qkv.weight,
        "predictor.transformer.layers.1.adaLN_modulation.1.weight": model.predictor.blocks[
            1
        ].modulation.weight,
        "pred_proj.net.3.weight": model.predictor_projector[3].weight,
        "action_encoder.embed.0.weight": model.action_encoder.embed[0].weight,
    }
    expected |= {"prediction": prediction.detach(), "sigreg": sigreg.detach()}
    assert {
        name: d
        for name in expected
        if (d := difference(found[name].detach(), expected[name])) > EXACT
    } == {}
    for name, parameter in pairs.items():
        error = (parameter.grad - traced[name].grad).norm() / traced[name].grad.norm()
        assert error < 10 * EXACT, name


def test_the_weights_of_these_tests_hide_nothing():
    """Every tensor matters: change any one by a little, and some output of the reference changes by
    more than we allow."""
    config, given = CONFIGS["small"], inputs(CONFIGS["small"])
    tensors = weights(config)

    def everything(tensors):
        reference = Reference(tensors, config)
        z = reference.encode(given.pixels[:1])
        return torch.cat([z[0, 3:], reference.rollout(z[0, :3], given.plans[0, 0, :4])])

    before = everything(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            # Not all of a tensor by one amount: a shift of all keys, or of all that a layer norm
            # sees, changes nothing.
            nudged = tensor + 0.1 * torch.linspace(-1, 1, tensor.numel()).reshape(tensor.shape)
            changed = difference(everything({**tensors, name: nudged}), before)
            assert changed > 10 * EXACT or name.endswith("attention.key.bias"), name
