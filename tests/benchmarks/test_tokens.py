"""The benchmark of tokens does the search that it says, on models with the tokens that it says."""

import torch

from lewm.benchmarks import tokens
from lewm.experiments.methods import SEARCH


def test_each_model_does_the_whole_search(monkeypatch):
    """Counted, not timed: candidates x iterations x blocks latents of each model."""
    monkeypatch.setattr(tokens, "SEARCH", type(SEARCH)(6, 2, 3))
    asked = []

    def counted(rollout, model):
        def rolled(context, past, actions):
            asked.append((model.latent_dim, actions.shape[1] * actions.shape[2]))
            return rollout(context, past, actions)

        return original(rolled, model)

    original = tokens._search
    monkeypatch.setattr(tokens, "_search", counted)
    with torch.no_grad():
        told = tokens._run((16,), 1)
    assert [(point["model"], point["tokens"]) for point in told["points"]] == [
        ("LeWM", 1),
        ("DINO-WM", 16),
    ]
    # twice for the time, once to count arithmetic
    latents = 3 * type(SEARCH)(6, 2, 3).evaluations * tokens.HORIZON
    for width in (192, 16 * 64):
        assert sum(count for dim, count in asked if dim == width) == latents
    assert told["points"][1]["gflop"] > told["points"][0]["gflop"] > 0
    (row,) = told["rows"]
    assert row["reference"] == told["points"][1]["ms"]
