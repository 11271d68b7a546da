"""The benchmark of tokens does the search that it says, on models with the tokens that it says."""

from dataclasses import replace

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


def test_a_time_is_that_of_its_own_model(monkeypatch):
    """Each model takes as many seconds as it has tokens, after a first time that warms up."""
    seen = []

    def search(rollout, model):
        return ("search", getattr(model, "tokens", 1))

    def seconds(work):
        seen.append(work[1])
        return 50.0 if seen.count(work[1]) == 1 else float(work[1])

    monkeypatch.setattr(tokens, "_search", search)
    monkeypatch.setattr(tokens, "_seconds", seconds)
    monkeypatch.setattr(tokens, "count_flops", lambda work: 7e9 * work[1])
    with torch.no_grad():
        told = tokens._run((16,), 3)
    assert seen == [1, 16] * 4
    assert [(p["model"], p["tokens"], p["ms"], p["gflop"]) for p in told["points"]] == [
        ("LeWM", 1, 1000.0, 7.0),
        ("DINO-WM", 16, 16000.0, 112.0),
    ]
    ours, many = (
        sum(p.numel() for p in config.build(tokens.SPEC).parameters() if p.requires_grad)
        for config in (tokens.LeWMConfig.tiny(), small_patches())
    )
    assert [point["parameters"] for point in told["points"]] == [ours, many]
    (row,) = told["rows"]
    assert (row["ours"], row["reference"], row["ratio"]) == (1000.0, 16000.0, 16.0)


def small_patches():
    made = {"encoder": "random", "channels": 64, "resolution": tokens.RESOLUTIONS[16]}
    return replace(tokens.DINOWMConfig.tiny(), **made)
