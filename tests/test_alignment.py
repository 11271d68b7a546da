"""Which action leads from which frame to which: in training, windows, heads, rollouts, the search,
paths, surprise, decoding and animations.

In a world that is linear and of whole numbers, an exact model has an error of 0 where everything is
aligned. Off by one anywhere it is off by whole units, and each test shows that once.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lewm.analyses.decoding import _Windows
from lewm.analyses.probes.paths import encode_paths
from lewm.analyses.probes.rollouts import roll_out
from lewm.analyses.surprise import score
from lewm.contracts import Batch, Plan, Statistics
from lewm.data.readers import open_windows
from lewm.evaluation.recordings import Recording, record_episodes
from lewm.evaluation.tasks import Task, draw_pairs
from lewm.planning.agent import Agent
from lewm.planning.config import PlanningConfig
from lewm.planning.objectives.l2 import L2
from lewm.planning.solvers.cem import CEM
from lewm.planning.trace import Replan, Scored
from lewm.report.animation import draw_episode
from lewm.runs.run import Run
from lewm.training.hindsight import encode_episodes
from tests.support.linear_world import FRAMESKIP, IDENTITY, LinearLeWM, LinearWorld, write
from tests.support.models import model as full_model
from tests.support.models import question
from tests.support.point_world import SPEED, PointEpisodes, PointModel, PointWorld
from tests.support.point_world import draw as draw_point

SKEWED = Statistics((0.5,) * 3, (0.5,) * 3, (0.5, -0.25), (0.5, 2.0))
"""Powers of two, so that normalising and back changes no bit; and it must be done both ways."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear")
    return {every: write(folder / f"{every}.h5", every=every) for every in (1, 5)}


# ----------------------------------------------------------------------------------------- training


def error(model, pixels, actions):
    return float(model.loss(Batch(pixels, actions)).terms["prediction"])


@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize(("every", "frameskip"), [(1, 5), (5, 5), (1, 3), (5, 10)])
@pytest.mark.parametrize("statistics", [IDENTITY, SKEWED])
def test_the_loss_of_an_exact_model_is_0_and_only_if_targets_and_actions_are_aligned(
    files, mode, every, frameskip, statistics
):
    source = files[every]
    window = 4
    batches = open_windows(
        source, range(10), window, frameskip, statistics, batch_size=16, mode=mode, workers=0
    )
    with batches.between(0, 1) as drawn:
        batch = next(iter(drawn))
    for context in range(1, window):
        model = LinearLeWM(context, statistics, frameskip)
        assert error(model, batch.pixels, batch.actions) == 0
        later_actions = error(model, batch.pixels, batch.actions.roll(1, dims=1))
        later_targets = error(model, batch.pixels.roll(1, dims=1), batch.actions)
        block = batch.actions.unflatten(-1, (frameskip, 2))
        later_step = error(model, batch.pixels, block.roll(1, dims=2).flatten(2))
        swapped = error(model, batch.pixels, block.flip(3).flatten(2))
        assert min(later_actions, later_targets, later_step, swapped) > 0.5


# ----------------------------------------------------------------------------------------- rollouts


@pytest.mark.parametrize("context", [1, 2, 3])
def test_an_exact_rollout_is_what_came(files, context):
    """Block k acts between latent k and latent k + 1, whatever is known of the past."""
    model = LinearLeWM(context)
    paths = encode_paths(model, files[1], [3, 7])
    for known in range(1, 4):
        seen = paths.latents[:known][None]
        past, ahead = paths.blocks[: known - 1][None], paths.blocks[known - 1 : known + 3][None]
        found = model.rollout(seen, past, ahead[:, None])[0, 0]
        assert torch.equal(found, paths.latents[known : known + 4])
        late = model.rollout(seen, past, paths.blocks[known : known + 4][None, None])[0, 0]
        assert (late - found).abs().max() >= 1


@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("faster", [False, True])
def test_a_block_moves_what_comes_after_it_and_nothing_before(context, faster):
    plain = full_model(context).double()
    unroll = plain.engine() if faster else plain.rollout
    for k in range(1, context + 1):
        seen, past, actions = question(plain, k)
        with torch.no_grad():
            found = unroll(seen, past, actions)
            for h in range(actions.shape[2]):
                other = actions.clone()
                other[:, :, h] += 1
                moved = (unroll(seen, past, other) - found).abs().amax(dim=(0, 1, 3)) > 1e-9
                # what is still in the window h + K blocks on, at least the one right after it
                assert moved.tolist()[: h + 1] == [False] * h + [True]


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("context", [1, 2, 3])
def test_paths_and_their_rollouts_are_exact(files, every, context):
    model, source = LinearLeWM(context), files[every]
    paths = encode_paths(model, source, range(12))
    first = paths.followed(1)
    following = model._onward(paths.latents[first][None], paths.blocks[first][None])[0]
    assert torch.equal(following, paths.latents[first + 1])
    ahead = roll_out(model, source, range(12), horizon=4, most=12, seed=(0, 1))
    np.testing.assert_array_equal(ahead.predicted, ahead.encoded)
    assert (ahead.last != ahead.encoded[:, 0]).any(axis=1).all()
    state = np.concatenate([source.states(i) for i in range(12)])
    np.testing.assert_array_equal(ahead.encoded, state[ahead.rows])


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("context", [1, 2, 3])
def test_what_is_imagined_for_the_decoder_is_what_came(files, every, context):
    model, source = LinearLeWM(context), files[every]
    run = Run(model, source, fit_ids=(), test_ids=range(12))
    windows = _Windows.drawn(run, 4, 12, np.random.default_rng(0))
    state = np.concatenate([source.states(i) for i in range(12)])[windows.rows]
    imagined = windows.imagined(model, state[:, :context])
    np.testing.assert_array_equal(imagined, state[:, context:])


@pytest.mark.parametrize("context", [1, 2, 3])
def test_surprise_is_that_of_the_frame_that_came(files, context):
    """Entry j is about frame K + j: a frame that is out of place surprises there, and later only as
    long as it is looked at."""
    model, source = LinearLeWM(context), files[1]
    latents = torch.from_numpy(source.states(4)[::FRAMESKIP])[None]
    blocks = source.actions(4)[:-1].reshape(1, -1, FRAMESKIP, 2)
    assert (score(model, latents, blocks) == 0).all()
    latents[0, 5, 0] += 6
    found = score(model, latents, blocks)[0]
    assert found.shape == (9 - context,)
    surprised = np.flatnonzero(found) + context
    assert surprised[0] == 5
    assert found[5 - context] == 36 / 3
    assert surprised[-1] == {1: 6, 2: 7, 3: 7}[context]


# -------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("every", [1, 5])
def test_hindsight_is_exact(files, every):
    """From `now`, the known blocks lead to `goal` in `steps` env steps; both count them."""
    model = LinearLeWM(1)
    walks = encode_episodes(model, files[every], range(12))
    rows = 40 // every + 1
    assert torch.equal(walks.following, torch.arange(rows).flip(0).repeat(12))
    # a block whose last action is that of the last row, which is none, is not held
    assert torch.equal(walks.whole, walks.following * every >= FRAMESKIP)
    pairs = walks.hindsight(4000, reach=30, horizon=4, generator=np.random.default_rng(0))
    assert torch.equal(pairs.goal[:, 2] - pairs.now[:, 2], pairs.steps)
    known = pairs.known.sum(dim=1)
    assert set(known.tolist()) == {0, 1, 2, 3, 4}
    # a block is known if it began before the goal and the episode holds it
    whole = pairs.steps % FRAMESKIP == 0
    held = torch.minimum((pairs.steps / FRAMESKIP).ceil(), torch.tensor(4.0))
    assert torch.equal(known[whole].float(), held[whole])
    assert (known <= held).all()
    at = pairs.now[:, None]
    for h in range(4):
        at = torch.where(
            pairs.known[:, None, h : h + 1], model._onward(at, pairs.blocks[:, h : h + 1]), at
        )
    there = whole & (pairs.steps <= 4 * FRAMESKIP)
    assert int(there.sum()) > 500
    assert torch.equal(at[there, 0], pairs.goal[there])
    assert (pairs.blocks[~pairs.known] == 0).all()


# --------------------------------------------------------------------------------------- the search


@dataclass(frozen=True)
class Random:
    """A solver that plans at random, in the box."""

    evaluations = 1

    def solve(self, cost, start, box, generators):
        mean = torch.stack([torch.randn(start.mean.shape[1:], generator=g) for g in generators])
        mean = box.clamp(mean).round()
        cost(mean[:, None])
        return Plan(mean, start.std)


@pytest.mark.parametrize("receding", [1, 2, 3])
@pytest.mark.parametrize("context", [1, 3])
def test_what_an_exact_agent_imagines_of_the_blocks_that_it_executes_comes(context, receding):
    world = LinearWorld([[3, -2, 0], [0, 7, -20]])
    config = PlanningConfig(L2(), Random(), horizon=3, receding=receding)
    agent = Agent(LinearLeWM(context), config, world.spec, [1, 2], trace=True)
    goal, states = world.render(), [world.states]
    for _ in range(6 * FRAMESKIP):
        world.step(agent.act(world.render(), goal))
        states.append(world.states)
    frames = np.stack(states)[::FRAMESKIP]  # of block starts
    assert [replan.step for replan in agent.trace] == list(
        range(0, 6 * FRAMESKIP, receding * FRAMESKIP)
    )
    for replan in agent.trace:
        block = replan.step // FRAMESKIP
        np.testing.assert_array_equal(replan.now, frames[block])
        came = frames[block + 1 : block + 1 + receding].swapaxes(0, 1)
        np.testing.assert_array_equal(replan.latents[:, : came.shape[1]], came)


# --------------------------------------------------------------------------------------- animations


def test_a_recorded_action_leads_from_its_frame_to_the_next():
    config = PlanningConfig(
        L2(0.5), CEM(num_candidates=16, num_elites=4, num_iterations=2), horizon=3, receding=2
    )
    points, world = PointEpisodes(count=8), PointWorld(3)
    protocol = Task.along(15, 3, seed=0)
    pairs = draw_pairs(points, range(8), world, protocol)
    recordings = record_episodes(PointModel(), config, world, points, pairs, protocol)
    assert len(recordings) == len(pairs)
    for i, found in enumerate(recordings):
        moved = np.clip(found.states[:-1] + SPEED * found.actions, 0, 1)
        np.testing.assert_allclose(moved, found.states[1:], atol=1e-6)
        np.testing.assert_array_equal(found.pixels, draw_point(found.states))
        np.testing.assert_allclose(found.states[0], pairs.starts[i])
        np.testing.assert_array_equal(found.goal_pixels, draw_point(pairs.goals[i : i + 1])[0])
        for replan in found.replans:
            np.testing.assert_allclose(replan.now[0], found.states[replan.step], atol=1e-4)
            done = found.actions[replan.step : replan.step + 2 * FRAMESKIP]
            np.testing.assert_array_equal(replan.actions[0, : len(done)], done)


def test_an_animation_shows_each_step_beside_its_picture_and_its_plan():
    """Every picture has its step's colour. Before a plan is executed its search is shown, over the
    picture that it was made from."""
    steps, replan_at = 6, (0, 4)
    colours = 40 * np.arange(steps + 1, dtype=np.uint8)
    pixels = np.broadcast_to(colours[:, None, None, None], (steps + 1, 4, 4, 3))
    round_ = Scored(np.zeros((1, 3)), np.zeros((1, 3, 2, 10)), np.zeros((1, 3, 2)))
    last = Scored(np.zeros((1, 1)), np.zeros((1, 1, 2, 10)), np.zeros((1, 1, 2)))
    replans = tuple(
        Replan(
            step=at, environments=np.array([0]), rounds=(round_,) * rounds + (last,),
            plan=np.zeros((1, 2, 10)), actions=np.zeros((1, 10, 2)), now=np.zeros((1, 2)),
            goal=np.zeros((1, 2)), latents=np.zeros((1, 2, 2)),
        )
        for at, rounds in zip(replan_at, (2, 1), strict=True)
    )  # fmt: skip
    recording = Recording(
        pixels=pixels, goal_pixels=pixels[-1], states=np.zeros((steps + 1, 2)),
        goal_state=np.zeros(2), actions=np.zeros((steps, 2)), success_step=None, replans=replans,
    )  # fmt: skip
    frames = draw_episode(recording, budget=10)
    shown = [int(frame.pixels[150, 150, 0]) // 40 for frame in frames]
    assert shown == [0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 5, 6]
    still, search, plan, end = 90, 420, 700, 2200
    assert [frame.milliseconds for frame in frames] == [
        search, search, plan, still, still, still, still, search, plan, still, still, end
    ]  # fmt: skip
