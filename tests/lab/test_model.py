"""The page computes what PyTorch does: latents, rollouts, distances, plans, whole episodes."""

import base64
import itertools
import json

import numpy as np
import pytest
import torch

from lewm.planning.agent import Agent
from lewm.planning.objectives.temporal import Temporal
from lewm.worlds.two_room import TwoRoomWorld
from tests.support.exported import CONFIGS, heads_of, lewm, run_of, tensor, written
from tests.support.node import needs_node, node
from tests.support.project import SIZE

pytestmark = needs_node

CLOSE = {"rtol": 0, "atol": 5e-5}


@pytest.fixture(scope="module", params=CONFIGS)
def opened(request, small_data, tmp_path_factory):
    """A run, and its export in a folder."""
    model = lewm(**CONFIGS[request.param])
    run = run_of(small_data, model, heads_of(model))
    folder = tmp_path_factory.mktemp("lab")
    return run, folder, *written(run, folder)


def frames(run, number, apart=37):
    return run.episodes.pixels_at(np.arange(number) * apart % run.episodes.steps)


def run_box(model):
    """Bounds of an action in normalised units; the world's are -1 and 1."""
    statistics = model.spec.statistics
    return [statistics.normalise_actions(torch.full((2,), end)).numpy() for end in (-1.0, 1.0)]


def encoded(model, pixels):
    return model.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, None])[:, 0]


def test_the_model_is_that_of_pytorch(opened):
    """Also from shorter contexts than K, and from windows that slide."""
    run, folder, exported, file = opened
    model, generator = run.model, torch.Generator().manual_seed(3)
    pixels = frames(run, 6)
    latents = encoded(model, pixels)
    assert latents.std(dim=0).mean() > 0.02, "frames differ"
    A = model.spec.block_dim
    past = torch.randn(model.context, A, generator=generator)
    actions = torch.randn(7, 4, A, generator=generator)
    steps = torch.tensor([0.3, 1.0, 2.5, 9.0, 40.0, 300.0])
    answer = node(
        folder,
        "model",
        {"exported": str(file), "steps": steps.tolist()},
        pixels=pixels,
        contexts=latents.numpy(),
        past=past.numpy(),
        actions=actions.numpy(),
    )
    np.testing.assert_allclose(answer["latents"], latents.flatten(), **CLOSE)
    for k in range(1, model.context + 1):
        expected = model.rollout(latents[None, :k], past[None, : k - 1], actions[None])
        np.testing.assert_allclose(answer[f"rollout{k}"], expected.flatten(), **CLOSE)
        assert expected.std(dim=1).mean() > 0.01, "candidates differ"
    temporal, amortised = run.heads["temporal"], run.heads["amortised"]
    distances = temporal.distance(latents[:1], latents)
    assert distances.max() > 1
    np.testing.assert_allclose(answer["distances"], distances, rtol=5e-5, atol=5e-5)
    plans = amortised.plan(latents[:1].expand(6, -1), latents, steps)
    np.testing.assert_allclose(answer["plans"], plans.flatten(), **CLOSE)
    weight, bias = (
        np.frombuffer(base64.b64decode(exported["probe"][name]), "<f4")
        for name in ("weight", "bias")
    )
    read = latents.numpy().astype(float) @ weight.reshape(-1, 2) + bias
    np.testing.assert_allclose(answer["read"], read.ravel(), rtol=1e-6, atol=1e-6)
    check = answer["check"]
    assert 0 < check["worst"] <= check["tolerance"] == 5e-5
    assert check["sentence"].startswith("equal to PyTorch to ")
    assert set(check) >= {"latents", "rollout", "distance", "plan"}


def test_weights_of_16_bits_say_how_far_they_are(small_data, tmp_path):
    model = lewm(**CONFIGS["conv stem"])
    run = run_of(small_data, model, heads_of(model))
    exact, _ = written(run, tmp_path)
    rounded, file = written(run, tmp_path, precision="float16")
    assert len(json.dumps(rounded)) < 0.7 * len(json.dumps(exact))
    latents = encoded(model, frames(run, 6)).numpy()
    given = {"pixels": frames(run, 6), "contexts": latents}
    A = model.spec.block_dim
    given |= {"past": np.zeros((3, A), np.float32), "actions": np.zeros((1, 4, A), np.float32)}
    settings = {"exported": str(file), "steps": [5.0] * 6}
    answer = node(tmp_path, "model", settings, **given)
    check = answer["check"]
    off = np.abs(answer["latents"] - latents.ravel()).max()
    assert 5e-5 < check["worst"] <= check["tolerance"] == 0.05
    assert off < 0.05
    assert "16 bits" in check["sentence"]


def test_what_cannot_be_computed_is_refused(small_data, tmp_path):
    """Wrong sizes, an export of another version, a browser without SIMD, and weights that are not
    those of the goldens."""
    model = lewm(**CONFIGS["conv stem"])
    run = run_of(small_data, model, heads_of(model))
    exported, file = written(run, tmp_path)
    other = lewm(**CONFIGS["conv stem"])
    other.encoder.blocks[0].mlp[0].bias.data[0] += 0.5
    changed, _ = written(run_of(small_data, other, heads_of(other)), tmp_path)
    file.write_text(json.dumps(exported))
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(exported | {"weights": changed["weights"]}))
    told = node(tmp_path, "refusals", {"exported": str(file), "wrong": str(wrong)})
    assert f"expected a picture of {SIZE} x {SIZE} x 3 bytes" in told["picture"]
    assert "expected 1 to 3 latents and a block between each two" in told["past"]
    assert "expected 3 candidates of whole blocks" in told["candidates"]
    assert "expected an export of format 1, got 99" in told["format"]
    assert "WebAssembly SIMD" in told["simd"]
    assert "expected what PyTorch computes to within 0.00005, got a difference" in told["check"]


@pytest.mark.parametrize(
    ("config", "receding", "look", "hold"),
    [
        ("overlap", 1, "published", False),
        ("conv stem", 2, "published", True),
        ("LayerNorm", 4, "walls", False),
    ],
)
def test_episodes_are_those_of_the_agent(small_data, tmp_path, config, receding, look, hold):
    """Start to end, with what it sees in between: the dot walks the same ways."""
    pairs, budget = 12, 40
    model = lewm(**CONFIGS[config])
    run = run_of(small_data, model, heads_of(model), receding, hold_actions=hold)
    exported, file = written(run, tmp_path)
    exported["world"]["look"] = look
    file.write_text(json.dumps(exported))
    world = TwoRoomWorld(pairs, SIZE, look)
    agent = Agent(model, run.planning, world.spec, list(range(pairs)))
    starts, goals, expected, plans = world.states, world.goals, [], None
    met = np.full(pairs, -1)
    for step in range(budget):
        actions = agent.act(world.render() if agent.observes else None, world.render(goals))
        plans = agent._previous.numpy().copy() if plans is None else plans
        world.step(actions)
        expected.append(world.states[:, :2])
        met = np.where((met < 0) & world.success(), step + 1, met)
    expected = np.stack(expected, axis=1)
    assert np.abs(expected[:, -1] - starts[:, :2]).max() > 10, "they go somewhere"
    answer = node(
        tmp_path, "loop", {"exported": str(file), "budget": budget}, starts=starts, goals=goals
    )
    np.testing.assert_allclose(answer["paths"].reshape(expected.shape), expected, rtol=0, atol=0.02)
    np.testing.assert_array_equal(answer["met"], met)
    # what a search would be given: the last frames, and the blocks between them and after
    seen = model.encode(agent._history.pixels)
    assert seen.shape[1] == model.context
    np.testing.assert_allclose(answer["contexts"], seen.flatten(), rtol=0, atol=1e-3)
    done = [*agent._history._blocks]
    assert len(done) == model.context - 1
    done = torch.stack(done, dim=1).flatten() if done else torch.empty(0)
    np.testing.assert_allclose(answer["past"], done, rtol=0, atol=1e-4)
    if not hold:
        np.testing.assert_allclose(answer["plans"], plans.ravel(), **CLOSE)


@pytest.mark.parametrize("hold", [False, True])
def test_cem_scores_what_python_scores(small_data, tmp_path, hold):
    """Costs and elites of every round, under a model that has seen two of three frames."""
    model = lewm(**CONFIGS["conv stem"])
    run = run_of(small_data, model, heads_of(model), hold_actions=hold)
    _, file = written(run, tmp_path)
    latents = encoded(model, frames(run, 8))
    context, goal = latents[1:3], latents[7:]
    past = torch.full((1, model.spec.block_dim), 0.4)
    sizes = {"candidates": 20, "elites": 4, "iterations": 6, "seed": 5}
    answer = node(
        tmp_path,
        "cem",
        {"exported": str(file), "cem": sizes},
        context=context.numpy(),
        past=past.numpy(),
        goal=goal.numpy(),
    )
    cost = Temporal(run.heads["temporal"]).cost
    tried = torch.from_numpy(answer["tried"].copy()).view(6, 20, 4, -1)
    if hold:
        each = tried.unflatten(-1, (5, 2))
        assert (each == each[..., :1, :]).all()
    rollout = model.engine()
    expected = torch.stack(
        [cost(rollout(context[None], past[None], one[None]), goal)[0] for one in tried]
    )
    costs = answer["costs"].reshape(6, 20)
    np.testing.assert_allclose(costs, expected, rtol=5e-5, atol=2e-4)
    elites = answer["elites"].reshape(6, 4).astype(int)
    np.testing.assert_array_equal(elites, np.argsort(costs, axis=1, kind="stable")[:, :4])
    assert costs.min(axis=1)[-1] < costs[0].min(), "the search gets somewhere"
    assert answer["ends"][0] <= costs[0, 0], "and is not worse than its start"
    # every round is drawn about the elites of the one before
    draws = answer["draws"]
    assert abs(draws.mean()) < 0.05
    assert draws.std() == pytest.approx(1, abs=0.05)
    sequences = answer["sequences"].reshape(6, 20, -1)
    width = sequences.shape[2]
    box = [np.resize(bound, width) for bound in run_box(model)]
    for i in range(5):
        chosen = sequences[i, elites[i]]
        noise = draws[(i + 1) * 19 * width : (i + 2) * 19 * width].reshape(19, width)
        drawn = chosen.mean(axis=0) + chosen.std(axis=0, ddof=1) * np.concatenate(
            [np.zeros((1, width)), noise]
        )
        np.testing.assert_allclose(sequences[i + 1], np.clip(drawn, *box), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(answer["again"], answer["blocks"])


def test_waypoints_are_the_shortest_ways(small_data, tmp_path):
    """By relaxing all edges again and again, which is slow and plain."""
    model = lewm(**CONFIGS["overlap"])
    run = run_of(small_data, model, heads_of(model))
    exported, file = written(run, tmp_path)
    latents = encoded(model, frames(run, 40))
    temporal, amortised = run.heads["temporal"], run.heads["amortised"]
    places = torch.from_numpy(tensor(exported, "map"))
    assert places.shape == (60, model.latent_dim)
    steps = temporal.distance(places[:, None], places[None]).numpy().astype(float)
    settings = {"limit": float(np.quantile(steps, 0.1)), "pace": 1.5, "aims": 3}
    settings["temperature"] = settings["limit"] / 5
    pairs = [(i, (i * 7 + 19) % 40) for i in range(40)]
    nows, goals = (latents[[pair[k] for pair in pairs]] for k in (0, 1))
    answer = node(
        tmp_path,
        "waypoints",
        {"exported": str(file), "planner": settings},
        nows=nows.numpy(),
        goals=goals.numpy(),
    )
    plans, aims = (answer[name].reshape(40, -1) for name in ("plans", "aims"))

    def trusted(distances):
        return np.where(distances <= settings["limit"], distances, np.inf)

    np.testing.assert_allclose(
        answer["edges"].reshape(60, 60), trusted(steps), rtol=1e-4, atol=1e-3
    )
    direct = temporal.distance(nows, goals).numpy().astype(float)
    near = trusted(temporal.distance(nows[:, None], places[None]).numpy().astype(float))
    last = trusted(temporal.distance(places[None], goals[:, None]).numpy().astype(float))
    for i, way in enumerate(answer["ways"]):
        onwards = last[i]
        for _ in range(60):
            onwards = np.minimum(onwards, (trusted(steps) + onwards).min(axis=1))
        over = near[i] + onwards
        if direct[i] <= settings["limit"] or not np.isfinite(over).any():
            assert way == []
            targets, told, weights = goals[i : i + 1], direct[i : i + 1], np.ones(1)
        else:
            length = near[i][way[0]] + sum(steps[a, b] for a, b in itertools.pairwise(way))
            np.testing.assert_allclose(length + last[i][way[-1]], over.min(), rtol=1e-4)
            np.testing.assert_allclose(answer["totals"][i], over.min(), rtol=1e-4)
            first = np.argsort(over, kind="stable")[:3]
            first = first[np.isfinite(over[first])]
            targets, told = places[first], near[i][first]
            weights = np.exp((over.min() - over[first]) / settings["temperature"])
        np.testing.assert_array_equal(aims[i], targets[0])
        told = torch.from_numpy(settings["pace"] * told).float()
        each = amortised.plan(nows[i].expand_as(targets), targets, told).numpy()
        mean = (each * (weights / weights.sum())[:, None, None]).sum(axis=0)
        low, high = (np.tile(exported["planning"][end], 5) for end in ("low", "high"))
        np.testing.assert_allclose(plans[i], np.clip(mean, low, high).ravel(), rtol=0, atol=2e-4)
    hops = [len(way) for way in answer["ways"]]
    assert min(hops) == 0
    assert max(hops) >= 2
