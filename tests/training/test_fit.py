"""Hindsight data worked out by hand, a loop that learns and repeats itself, and a world model that
stays as it is."""

import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lewm import registry
from lewm.cli.main import main
from lewm.contracts import Losses
from lewm.data.episodes import Provenance
from lewm.files import read_json
from lewm.planning.changes import PlanningChanges
from lewm.planning.config import PlanningConfig, attach
from lewm.planning.heads.amortised import AmortisedConfig
from lewm.planning.heads.temporal import TemporalConfig
from lewm.runs.heads import head_names
from lewm.runs.run import open_run
from lewm.stats import rank_correlation
from lewm.training.fit import FittingConfig, fit, fit_heads
from lewm.training.hindsight import Latents, encode_episodes
from tests.support.point_world import FRAMESKIP, SPEED, STATISTICS, PointEpisodes, PointModel


@dataclass
class Walks(PointEpisodes):
    """Those of the point world, with the actions that made them."""

    provenance: Provenance = Provenance()  # noqa: RUF009  frozen

    def actions(self, i):
        fine = PointEpisodes(self.count, (self.length - 1) * self.every + 1).states(i)
        blocks = (np.diff(fine, axis=0) / SPEED).reshape(self.length - 1, -1)
        return np.concatenate([blocks, np.full_like(blocks[:1], np.nan)])


# ----------------------------------------------------------------------------------------- the data


def numbered(lengths, gap=1, frameskip=3):
    """Episodes whose latents say (episode, frame), and whose blocks say the frame that they
    leave."""
    episode = torch.cat([torch.full((n,), float(i)) for i, n in enumerate(lengths)])
    frame = torch.cat([torch.arange(n) for n in lengths])
    following = torch.cat([torch.arange(n).flip(0) for n in lengths])
    whole = following * gap >= frameskip
    blocks = torch.where(whole, frame + 1, 0)[:, None].repeat(1, 2).float()
    return Latents(
        torch.stack([episode, frame.float()], 1), blocks, whole, following, gap, frameskip
    )


@pytest.mark.parametrize("gap", [1, 3])
def test_pairs_are_of_one_episode_and_hold_what_was_done_between_them(gap):
    data, reach, horizon = numbered((40, 7, 1), gap), 24, 4
    pairs = data.hindsight(4000, reach, horizon, np.random.default_rng(0))
    now, goal = pairs.now[:, 1], pairs.goal[:, 1]
    assert torch.equal(pairs.now[:, 0], pairs.goal[:, 0])
    assert torch.equal(pairs.steps, (goal - now) * gap)
    assert pairs.steps.min() == 0
    assert pairs.steps.max() == reach
    last = torch.tensor([39.0, 6.0, 0.0])[pairs.now[:, 0].long()]
    for h in range(horizon):
        begins = now + h * 3 // gap  # in frames
        known = (begins + 3 // gap <= last) & (h * 3 < pairs.steps)
        assert torch.equal(pairs.known[:, h], known)
        assert torch.equal(
            pairs.blocks[:, h], torch.where(known, begins + 1, 0)[:, None].repeat(1, 2)
        )
    assert pairs.known[:, 3].any()
    assert len(torch.unique(pairs.now, dim=0)) == 48, "some frames are never drawn"


def test_near_goals_are_as_frequent_as_far_ones():
    data = numbered((100_000,))
    steps = data.hindsight(20_000, 99, 0, np.random.default_rng(0)).steps
    for bound, share in ((0, np.log(1.5)), (9, np.log(10.5)), (99, np.log(100))):
        assert (steps <= bound).float().mean().item() == pytest.approx(
            share / np.log(100), abs=0.01
        )


def test_a_batch_depends_on_its_generator_alone():
    data = numbered((40, 7))
    first, again, other = (
        data.hindsight(64, 24, 2, np.random.default_rng(seed)) for seed in ((0, 5), (0, 5), (0, 6))
    )
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values()))
    assert not torch.equal(first.now, other.now)


def test_encoded_episodes_are_their_frames_and_blocks():
    model, walks = PointModel(), Walks(count=5, length=23)
    found = encode_episodes(model, walks, [1, 3])
    assert (len(found), found.gap, found.frameskip) == (46, 1, FRAMESKIP)
    np.testing.assert_allclose(
        found.latents, np.concatenate([walks.states(1), walks.states(3)]), atol=1e-5
    )
    assert torch.equal(found.following, torch.arange(23).flip(0).repeat(2))
    assert torch.equal(found.whole, found.following >= FRAMESKIP)
    moved = (
        STATISTICS.denormalise_actions(found.blocks).unflatten(-1, (FRAMESKIP, 2)).sum(1) * SPEED
    )
    reached = found.latents[:-FRAMESKIP] + moved[:-FRAMESKIP]
    whole = found.whole[:-FRAMESKIP]
    torch.testing.assert_close(reached[whole], found.latents[FRAMESKIP:][whole], atol=1e-4, rtol=0)
    assert (found.blocks[~found.whole] == 0).all()
    assert max(len(pixels) for pixels in model.encoded) <= 256


def test_a_file_with_a_row_per_block_gives_every_fifth_frame():
    fine = encode_episodes(PointModel(), Walks(count=4, length=21), [2])
    coarse = encode_episodes(PointModel(), Walks(count=4, length=5, every=5), [2])
    assert (coarse.gap, len(coarse)) == (5, 5)
    assert torch.equal(coarse.latents, fine.latents[::5])
    assert torch.equal(coarse.whole, fine.whole[::5])
    torch.testing.assert_close(coarse.blocks, fine.blocks[::5])


def test_of_too_many_frames_some_are_taken():
    model, walks, everything = PointModel(), Walks(count=12, length=61), range(12)
    assert len(encode_episodes(model, walks, everything, 732)) == 732
    blocks = encode_episodes(model, walks, everything, 731)
    assert (blocks.gap, len(blocks)) == (FRAMESKIP, 12 * 13)
    few, again, others = (encode_episodes(model, walks, everything, 60, seed) for seed in (0, 0, 1))
    assert (few.gap, len(few)) == (FRAMESKIP, 4 * 13)
    assert torch.equal(few.latents, again.latents)
    assert not torch.equal(few.latents, others.latents)


def test_data_that_cannot_be_fitted_to_are_refused(tmp_path):
    model, walks = PointModel(), Walks()
    with pytest.raises(ValueError, match="expected a model in evaluation mode"):
        encode_episodes(PointModel().train(), walks, [0, 1])
    with pytest.raises(
        ValueError, match="expected rows that a block of 5 env steps is made of, got one per 2"
    ):
        encode_episodes(model, Walks(every=2), [0, 1])
    with pytest.raises(
        ValueError, match=r"expected an episode of 2 rows or more .* got 2 episodes of at most 1"
    ):
        encode_episodes(model, Walks(length=1), [0, 1])
    with pytest.raises(
        ValueError,
        match="expected at least 2 episodes to fit heads to and 1 to measure on, got 1 and 2",
    ):
        fit_heads(tmp_path, model, walks, [0], [1, 2])
    with pytest.raises(ValueError, match=r"not fitted to, got \[1\] on both sides"):
        fit_heads(tmp_path, model, walks, [0, 1], [1, 2])
    with pytest.raises(ValueError, match=r"unknown head 'temporl'\. Did you mean 'temporal'"):
        fit_heads(tmp_path, model, walks, [0, 1], [2], ["temporl"])


# ----------------------------------------------------------------------------------------- the loop

QUICK = FittingConfig(updates=150, batch_size=128, learning_rate=5e-3, reach=30)


@pytest.fixture(scope="module")
def walked():
    """Latents of walks to fit to, and of others."""
    walks = Walks(count=16)
    return encode_episodes(PointModel(), walks, range(12)), encode_episodes(
        PointModel(), walks, range(12, 16)
    )


def head_of(config, latent_dim=2):
    torch.manual_seed(0)
    return config.build(latent_dim, 2 * FRAMESKIP)


def test_the_temporal_head_learns_the_time_that_a_way_takes(walked):
    """The points go along x, .02 a step, so the shortest way is known. Those that turn back or
    never move only take longer."""
    head = head_of(TemporalConfig(hidden_dim=32, metric_dim=8, oneway_dim=8))
    fit(head, *walked, QUICK)
    assert not head.training
    place = torch.stack([torch.linspace(0.15, 0.85, 15), torch.full((15,), 0.4)], 1)
    estimate = head.distance(place[:, None], place).detach()
    true = (place[:, None, 0] - place[:, 0]).abs() / SPEED
    assert rank_correlation(estimate.flatten().numpy(), true.flatten().numpy()) > 0.97
    near = (true > 2) & (true < 25)
    assert (estimate[near] / true[near]).median().item() == pytest.approx(1, abs=0.25)


def test_the_amortised_head_learns_what_leads_there_in_time(walked):
    head = head_of(AmortisedConfig(hidden_dim=64, horizon=2))
    fit(head, *walked, replace(QUICK, updates=300))
    now, ways = torch.tensor([[0.5, 0.4]]), []
    for x in (0.3, 0.7):
        plan = head.plan(now, torch.tensor([[x, 0.4]]), torch.tensor([10.0])).detach()
        ways.append(STATISTICS.denormalise_actions(plan)[0, 0, ::2].mean().item())
    assert ways[0] < -0.5
    assert ways[1] > 0.5


def test_fitting_twice_gives_the_same_weights(walked):
    weights = []
    for seed in (0, 0, 1):
        head = head_of(TemporalConfig(hidden_dim=16))
        fit(head, *walked, replace(QUICK, updates=5, seed=seed))
        weights.append(torch.cat([p.flatten() for p in head.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class Listener(torch.nn.Linear):
    """A head that keeps what it is given."""

    horizon = 0

    def __init__(self):
        super().__init__(2, 1)
        self.given = []

    def loss(self, batch):
        self.given.append(batch)
        return Losses({"size": self(batch.now).square().mean()})


def test_every_update_has_pairs_of_its_own_and_the_held_out_ones_are_of_others(walked):
    head = Listener()
    fit(head, *walked, replace(QUICK, updates=3))
    drawn = {tuple(batch.steps.tolist()) for batch in head.given}
    assert len(drawn) == len(head.given) > 6
    heights = [set(batch.now[:, 1].tolist()) for batch in head.given]
    known = set(walked[0].latents[:, 1].tolist())
    assert all(seen <= known for seen in heights[:3])
    assert not any(seen & known for seen in heights[3:])
    assert all(
        batch.blocks.shape == (QUICK.batch_size, 0, 2 * FRAMESKIP) for batch in head.given
    ), "it has no horizon"


def test_progress_is_told_and_settings_are_checked(walked):
    told = []
    fit(
        head_of(TemporalConfig(hidden_dim=16)),
        *walked,
        replace(QUICK, updates=10),
        told.append,
    )
    assert [(progress.done, progress.total) for progress in told] == [(n, 10) for n in range(1, 11)]
    assert told[-1].note.startswith("loss ")
    for wrong in ({"updates": 0}, {"reach": 0}, {"warmup": 1.0}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} "):
            FittingConfig(**wrong)
    broken = replace(walked[0], latents=torch.full_like(walked[0].latents, torch.nan))
    with pytest.raises(ValueError, match="expected finite losses"):
        fit(head_of(TemporalConfig(hidden_dim=16)), broken, broken, replace(QUICK, updates=2))


def test_rank_correlation():
    x = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(x, np.ones(5)))
    # By hand: ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4; covariance 4.5, variances 4.5 and 5.
    assert rank_correlation(np.array([0, 5, 5, 7]), np.array([0, 9, 3, 11])) == pytest.approx(
        4.5 / np.sqrt(4.5 * 5)
    )


# ----------------------------------------------------------------------------------- heads in a run


@pytest.fixture(scope="module")
def fitted(small_run, tmp_path_factory):
    """A copy of the small run, with heads."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    shutil.copytree(small_run, run)
    assert main(["fit", str(run), "--updates=20", "--json", str(run.parent / "fit.json")]) == 0
    return run


def test_the_world_model_stays_as_it_is_and_the_heads_are_in_the_run(small_run, fitted):
    for file in small_run.rglob("*"):
        assert (
            file.is_dir()
            or (fitted / file.relative_to(small_run)).read_bytes() == file.read_bytes()
        ), file
    told = read_json(fitted.parent / "fit.json")["heads"]
    assert set(told) == set(registry.names("heads")) == set(head_names(fitted))
    assert {"rank_correlation", "l2_rank_correlation", "heldout_loss", "frames"} < set(
        told["temporal"]
    )
    opened = open_run(fitted)
    assert set(opened.heads) == set(told)
    assert all(p.grad is None for p in opened.model.parameters())
    for head in opened.heads.values():
        assert not any(module.training for module in head.modules())
        assert not any(p.requires_grad for p in head.parameters())


def test_fitting_leaves_the_model_and_its_gradients_alone(fitted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    opened = open_run(run)
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    fit_heads(
        run,
        opened.model,
        opened.episodes,
        opened.fit_ids,
        opened.test_ids,
        ["temporal"],
        FittingConfig(updates=3),
    )
    assert all(
        torch.equal(before[name], tensor) for name, tensor in opened.model.state_dict().items()
    )
    assert all(p.grad is None for p in opened.model.parameters())
    assert not any(module.training for module in opened.model.modules())


def test_what_needs_heads_has_them_in_an_opened_run(fitted, small_run):
    opened = open_run(fitted)
    config = PlanningChanges(objective="temporal", intermediate=0.5).apply(
        opened.planning, opened.heads
    )
    assert config.objective.network is opened.heads["temporal"]
    assert config.objective.intermediate == 0.5
    plain = PlanningChanges(objective="temporal").apply(
        open_run(small_run).planning, open_run(small_run).heads
    )
    with pytest.raises(ValueError, match="lewm fit RUN temporal"):
        plain.objective.cost(torch.zeros(1, 1, 1, 8), torch.zeros(1, 8))


def test_heads_reach_the_solver_and_the_search_inside_of_it():
    @dataclass(frozen=True)
    class Inner:
        distance: object = None
        heads = {"distance": "temporal"}  # noqa: RUF012

    @dataclass(frozen=True)
    class Outer:
        network: object = None
        search: object = None
        heads = {"network": "amortised"}  # noqa: RUF012

    heads = {"temporal": torch.nn.Identity(), "amortised": torch.nn.Identity()}
    own = torch.nn.Identity()
    config = attach(PlanningConfig(Inner(), Outer(own, Inner())), heads)
    assert config.objective.distance is config.solver.search.distance is heads["temporal"]
    assert config.solver.network is own, "what is there is kept"
    config = attach(PlanningConfig(Inner(), Outer(search=Inner())), {"amortised": own})
    assert (config.solver.network, config.solver.search.distance, config.objective.distance) == (
        own,
        None,
        None,
    )
