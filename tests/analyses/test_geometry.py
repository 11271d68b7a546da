"""Straight lines are straight, Gaussian clouds are inside their band and others are not, a planted
distance is ranked, a perfect model makes no error; and what a training watches changes nothing of
what it learns."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm.analyses.geometry import Geometry, GeometryResult
from lewm.analyses.probes.paths import encode_paths
from lewm.cli.main import main
from lewm.contracts import DataSpec
from lewm.data.provenance import Provenance
from lewm.data.windows import beginnings
from lewm.models.lewm import LeWMConfig
from lewm.models.nn import losses
from lewm.models.nn.sigreg import draw_directions, sigreg, sigreg_per_slice
from lewm.report.canvas import THEME
from lewm.report.sections.geometry import draw
from lewm.runs import checkpoints
from lewm.runs.answers import load_result, save_result
from lewm.runs.run import Run, Unsupported
from lewm.training import train
from tests.support.point_world import (
    FRAMESKIP,
    SIZE,
    SPEED,
    STATISTICS,
    PointEpisodes,
    PointModel,
    PointWorld,
)
from tests.support.point_world import draw as picture
from tests.support.project import train_command

GEOMETRY = Geometry(gaussians=60, slices=32, draws=40, controls=False)
HELD = tuple(range(1, 13))


@dataclass
class Walks(PointEpisodes):
    """Fourteen of the point world, each with the actions that made it."""

    count: int = 14
    length: int = 81
    state_names = ("across", "along")
    provenance = Provenance(state_units=("m", "m"))

    def actions(self, i):
        moves = np.diff(self.states(i), axis=0) / SPEED
        return np.concatenate([moves, np.full((1, 2), np.nan)]).astype(np.float32)


@dataclass
class Marches(Walks):
    """Straight on, in all of them: x tells the step."""

    def states(self, i):
        x = 0.1 + 0.01 * np.arange(self.length)
        return np.stack([x, np.full(self.length, i / self.count)], axis=1).astype(np.float32)


def head(distance):
    """A cost on latents of `Marches`, by the steps between them."""
    return SimpleNamespace(
        distance=lambda now, goal: distance(((goal - now)[..., 0] * 100).round())
    )


@pytest.fixture(scope="module")
def walked():
    walks = Run(PointModel(), Walks(), (0,), HELD, open_world=PointWorld)
    return GEOMETRY.run(walks)


@pytest.fixture(scope="module")
def marched():
    heads = {"temporal": head(lambda steps: steps.abs().clamp(max=30))}
    return GEOMETRY.run(Run(PointModel(), Marches(), (0,), HELD, heads=heads))


# ------------------------------------------------------------------------------------- straightness


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (torch.arange(9.0)[:, None] * torch.tensor([3.0, -1.0]) + 7, 1.0),
        (torch.tensor([[0.0], [2.0]] * 5), -1.0),
        (torch.tensor([[0.0, 0], [1, 0], [1, 1], [2, 1], [2, 2]]), 0.0),
        (noise(4, 200, 500).cumsum(dim=1), 0.0),
        (noise(4, 200, 500), -0.5),
    ],
    ids=[
        "a line",
        "to and fro",
        "stairs",
        "a random walk",
        "latents that know nothing of each other",
    ],
)
def test_straightness_of_paths_that_are_known(path, expected):
    assert float(losses.straightness(path)) == pytest.approx(expected, abs=0.005)


def test_size_place_and_orientation_do_not_matter_and_direction_of_time_neither():
    path = noise(3, 20, 6).cumsum(dim=1)
    turned = path @ torch.linalg.qr(noise(6, 6, seed=1))[0] * 1e-4 + 0.2
    expected = float(losses.straightness(path))
    assert float(losses.straightness(turned)) == pytest.approx(expected, abs=1e-3)
    assert float(losses.straightness(path.flip(1))) == pytest.approx(expected, abs=1e-6)


def test_where_nothing_moves_there_is_no_direction():
    path = torch.tensor([[0.0], [1.0], [2.0], [2.0 + 1e-5], [2.0], [3.0], [4.0]])
    np.testing.assert_array_equal(losses.turns(path, 1e-3).numpy(), [1, np.nan, np.nan, np.nan, 1])
    assert float(losses.straightness(path)) == 1
    assert losses.straightness(torch.ones(2, 5, 3)).isnan()
    assert not losses.straightness(path.requires_grad_()).requires_grad


def test_statistics_of_single_directions_average_to_the_loss():
    latents, directions = noise(40, 3, 8) ** 2, draw_directions(8, 50)
    each = sigreg_per_slice(latents, directions)
    assert each.shape == (3, 50)
    assert float(each.mean()) == pytest.approx(float(sigreg(latents, directions)), rel=1e-5)
    one = sigreg(latents[:, 1:2], directions[:, 7:8])
    assert float(each[1, 7]) == pytest.approx(float(one), rel=1e-5)


def test_walks_are_straight_but_for_their_turns_and_still_ones_do_not_count(walked):
    found = walked.straightness
    # Of 12 walks 3 stand still. The others turn every 40 steps, which is once or twice in 80.
    assert found.still == pytest.approx(3 / 12)
    assert found.n == 9 * 15
    assert found.value == pytest.approx(found.states.value, abs=1e-3)
    assert 0.6 < found.value < 0.9
    assert found.interval[0] <= found.value <= found.interval[1]
    frames = [
        torch.from_numpy(picture(Walks().states(i)[::FRAMESKIP])).flatten(1).float() for i in HELD
    ]
    assert found.pixels.value == pytest.approx(
        float(torch.cat([losses.turns(each) for each in frames]).nanmean())
    )
    assert found.pixels.n == found.n
    assert (found.random_encoder, found.curve) == (None, ())
    assert "did not log" in found.curve_from


def test_the_curve_is_what_the_training_logged():
    lines = (
        {"update": 1, "straightness": -0.5},
        {"update": 2},
        {"update": 3, "straightness": float("nan")},
    )
    opened = Run(
        PointModel(), Walks(), (0,), HELD, metrics=(*lines, {"update": 4, "straightness": 0.25})
    )
    assert GEOMETRY.run(opened).straightness.curve == ((1, -0.5), (4, 0.25))


def test_velocities_are_no_places_and_angles_do_not_jump():
    class Turning(Walks):
        """A wheel that turns evenly, with its angle cut at pi, at a speed that is noise."""

        state_names = ("angle", "speed")
        provenance = Provenance(state_units=("rad", "rad/s"))

        def states(self, i):
            angle = (0.02 * np.arange(self.length) + i + np.pi) % (2 * np.pi) - np.pi
            return np.stack(
                [angle, np.random.default_rng(i).normal(size=self.length)], axis=1
            ).astype(np.float32)

        def rows(self, column, indices):
            return Walks().rows(column, indices)

        def actions(self, i):
            return Walks().actions(i)

    found = GEOMETRY.run(Run(PointModel(), Turning(), (0,), HELD)).straightness.states
    assert found.value == pytest.approx(np.cos(0.1), abs=1e-3)


# ----------------------------------------------------------------------------------------- isotropy


def isotropy(sample, seed=0):
    return replace(GEOMETRY, seed=seed, gaussians=100)._isotropy(sample)[0]


def test_a_gaussian_is_inside_its_band_as_often_as_promised():
    found = [isotropy(noise(50, 6, seed=1000 + i), seed=i) for i in range(60)]
    # 95% of 60 is 57; a band from 100 samples is a little rough
    assert 51 <= sum(each.inside for each in found) <= 60
    assert 51 <= sum(each.worst_inside for each in found) <= 60
    assert found[0].n == 50
    assert found[0].null_low < found[0].null_mean < found[0].null_high
    assert found[0].null_mean == pytest.approx(1.05, abs=0.1)


@pytest.mark.parametrize(
    "cloud",
    [
        noise(100, 6) * torch.tensor([1, 1, 1, 1, 1, 0.05]),
        noise(100, 6) * 0.6,
        noise(100, 6) + torch.where(noise(100, 1, seed=1) > 0, 1.5, -1.5),
        noise(100, 6) + 0.7,
    ],
    ids=["squashed", "small", "a mixture", "off centre"],
)
def test_other_clouds_are_outside(cloud):
    found = isotropy(cloud)
    assert not found.inside
    assert found.statistic > found.null_high
    assert not found.worst_inside


def test_spectrum_and_rank_are_those_of_the_covariance(walked, marched):
    model, ids = PointModel(), list(HELD)
    latents = encode_paths(model, Walks(), ids).latents.numpy()
    expected = np.sort(np.linalg.eigvalsh(np.cov(latents.T, bias=True)))[::-1]
    np.testing.assert_allclose(walked.spectrum, expected, rtol=1e-4)
    np.testing.assert_allclose(walked.std, latents.std(axis=0), rtol=1e-4)
    shares = expected / expected.sum()
    assert walked.effective_rank == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-3
    )
    assert (walked.latent_dim, walked.dims_99) == (2, 2)


# ---------------------------------------------------------------------------- costs and predictions


def test_a_planted_distance_is_ranked_and_noise_is_not(marched):
    def costs(distance):
        return GEOMETRY.run(
            Run(PointModel(), Marches(), (0,), HELD, heads={"temporal": head(distance)})
        )

    exact = costs(lambda steps: steps.abs()).ranks
    # 100 steps are more than there are
    assert list(exact["temporal"]) == ["5", "10", "25", "50", "75"]
    for bound in ("10", "25", "75"):
        assert exact["temporal"][bound].rho == pytest.approx(1)
        assert exact["temporal"][bound].interval == pytest.approx([1, 1])
    assert exact["l2"]["75"].rho > 0.97  # equal but for the rounding of pictures
    assert exact["temporal"]["5"].rho is None  # all of those are 5 steps apart
    assert exact["temporal"]["10"].n == 12 * 31  # as many as there are, up to 40 per episode
    assert exact["temporal"]["75"].n == 12 * 40
    noisy = costs(
        lambda steps: torch.randn(steps.shape, generator=torch.Generator().manual_seed(0))
    ).ranks["temporal"]["75"]
    assert abs(noisy.rho) < 0.15
    assert noisy.interval[0] < 0.05
    backward = costs(lambda steps: -steps).ranks["temporal"]["50"]
    assert backward.rho == pytest.approx(-1)


def test_the_distance_of_states_is_what_the_latents_of_an_exact_encoder_say(walked):
    # up to 10 steps nearly all distances are equal, and their ranks rounding
    for bound in ("25", "50", "75"):
        assert walked.ranks_states["l2"][bound].rho > 0.9


def test_pairs_in_two_rooms_are_ranked_by_themselves(walked, marched):
    across = walked.ranks_across["l2"]
    everywhere = walked.ranks["l2"]
    assert 0 < across["50"].n < everywhere["50"].n
    assert across["50"].episodes == 9
    assert across["50"].rho is None  # no number without support: an interval needs 10
    assert marched.ranks_across is None


def test_a_cost_that_saturates_is_found_to_and_one_that_grows_is_not(marched):
    found = marched.saturation["temporal"]
    assert found.offset == 30  # 27 = .9 x 30, in steps of 5
    assert found.interval == (30, 30)
    assert found.plateau == pytest.approx(30)
    assert found.linear == 70  # .9 x 72.5, in steps of 5
    assert marched.saturation["l2"].offset >= found.linear
    np.testing.assert_allclose(marched.costs["temporal"].mean, np.minimum(marched.offsets, 30))
    np.testing.assert_array_equal(marched.offsets, np.arange(5, 81, 5))


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_perfect_model_makes_no_error_and_no_change_does(context):
    result = GEOMETRY.run(Run(PointModel(context), Marches(), (0,), HELD))
    assert list(result.open_loop) == [str(h) for h in range(1, 11)]
    for h, found in enumerate(result.open_loop.values(), 1):
        assert found.error < 1e-8
        assert found.copy == pytest.approx((0.01 * FRAMESKIP * h) ** 2 / 2, rel=0.01)
        assert found.n == 12 * 4
        assert found.gain[0] > 0
    assert result.open_loop_not_better_from is None
    assert found.random == pytest.approx(result.saturation["l2"].strangers / 2)


def test_it_says_from_where_a_model_is_no_better_than_no_change():
    class Drifts(PointModel):
        """The further, the worse: from block 4 on twice as far off as no change."""

        def rollout(self, context, past_actions, actions):
            latents = super().rollout(context, past_actions, actions)
            now = context[:, -1, None, None]
            return torch.cat([latents[:, :, :3], now + 3 * (latents[:, :, 3:] - now)], dim=2)

    result = GEOMETRY.run(Run(Drifts(), Marches(), (0,), HELD))
    assert result.open_loop_not_better_from == 4
    assert result.open_loop["5"].error == pytest.approx(4 * result.open_loop["5"].copy, rel=0.01)


def test_paths_of_a_file_with_a_row_per_block_are_those_of_one_with_a_row_per_step():
    class Coarse(Walks):
        def actions(self, i):
            return np.concatenate(
                [Walks().actions(i)[:80].reshape(-1, 10), np.full((1, 10), np.nan, np.float32)]
            )

    fine = encode_paths(PointModel(), Walks(), [2, 5])
    coarse = encode_paths(PointModel(), Coarse(length=17, every=5), [2, 5])
    assert fine.gap == coarse.gap == FRAMESKIP
    torch.testing.assert_close(fine.latents, coarse.latents)
    torch.testing.assert_close(fine.blocks[:16], coarse.blocks[:16])
    np.testing.assert_array_equal(fine.rows[:3], [162, 167, 172])
    np.testing.assert_array_equal(fine.followed(15), [0, 1, 17, 18])
    assert fine.reach(2) == 16
    first, second = fine.pairs(3, 4, np.random.default_rng(0))
    assert len(first) == 8
    assert (fine.episode[first] == fine.episode[second]).all()
    assert set(second - first) <= {1, 2, 3}


# ------------------------------------------------------------------------------ contract of results


def test_the_model_stays_as_it_is_and_a_control_with_random_weights_stands_beside_it():
    config = LeWMConfig(
        patch_size=2, encoder_width=16, encoder_depth=1, encoder_heads=2, projector_dim=32,
        latent_dim=12, context=1,
        predictor_width=16, predictor_depth=1, predictor_heads=2, predictor_head_dim=8,
        predictor_mlp_dim=32,
    )  # fmt: skip
    model = config.build(DataSpec(SIZE, FRAMESKIP, STATISTICS)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    opened = Run(model, Walks(), (0,), HELD)
    result = replace(GEOMETRY, controls=True).run(opened)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert -1 <= result.straightness.random_encoder.value <= 1
    again = replace(GEOMETRY, controls=True).run(opened)
    assert result.to_json() == again.to_json()


def test_results_can_be_stored_and_their_tables_have_one_shape(walked, tmp_path):
    save_result(tmp_path, walked, {})
    stored, _ = load_result(tmp_path, GeometryResult)
    assert stored.to_json() == walked.to_json()
    for caption, rows in walked.tables().items():
        assert re.search(r"\d", caption)
        assert len({tuple(row) for row in rows}) == 1
        assert all(isinstance(cell, str | int | float) for row in rows for cell in row.values())


def test_without_states_everything_else_is_answered():
    found = GEOMETRY.run(Run(PointModel(), Walks(has_states=True), (0,), HELD))
    blind = GEOMETRY.run(
        Run(PointModel(), BlindWalks(has_states=False), (0,), HELD, open_world=PointWorld)
    )
    assert found.straightness.states is not None
    assert blind.straightness == replace(found.straightness, states=None)
    assert blind.ranks_states is None
    assert blind.ranks == found.ranks


class BlindWalks(Walks):
    """They know their states, and do not tell."""

    def states(self, i):
        return Walks().states(i)


@pytest.mark.parametrize(
    ("episodes", "held", "message"),
    [
        (Walks(), HELD[:9], "10 held-out ones"),
        (Walks(length=10), HELD, "10 held-out episodes of 11 rows or more"),
    ],
)
def test_no_number_without_support(episodes, held, message):
    with pytest.raises(Unsupported, match=message):
        GEOMETRY.run(Run(PointModel(), episodes, (0,), held))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        GEOMETRY.run(Run(PointModel().train(), Walks(), (0,), HELD))


def test_panels_are_whole_and_the_page_decides_about_colours(walked, marched):
    curve = replace(walked.straightness, curve=((10, -0.4), (20, 0.1)))
    logged = replace(walked, straightness=curve)
    first, second = draw(logged), draw(marched)
    assert (len(first), len(second)) == (6, 5)
    panels = [panel.svg for panel in (*first, *second)]
    for panel in panels:
        assert ElementTree.fromstring(panel).attrib["aria-label"]
        assert "<script" not in panel
        assert min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", panel)) >= 9
        for colour in THEME.values():
            assert panel.count(colour) == panel.count(f", {colour})")
    assert "paper" in panels[0]
    assert "temporal, ρ" in "".join(panels)


# ----------------------------------------------------------------------------------------- training


def test_beginnings_are_the_same_few_paths_every_time():
    episodes = Walks(count=20)
    paths = beginnings(episodes, range(3, 20), FRAMESKIP, count=4, length=6, seed=1)
    assert paths.shape == (4, 6, 3, SIZE, SIZE)
    assert torch.equal(
        paths, beginnings(episodes, range(3, 20), FRAMESKIP, count=4, length=6, seed=1)
    )
    assert not torch.equal(
        paths, beginnings(episodes, range(3, 20), FRAMESKIP, count=4, length=6, seed=2)
    )
    assert len(beginnings(episodes, [7], FRAMESKIP)) == 1
    x = PointModel().encode(paths)[..., 0]
    assert ((x[:, 1:] - x[:, :-1]).abs() < FRAMESKIP * SPEED + 1e-3).all()
    assert beginnings(Walks(length=10), range(14), FRAMESKIP) is None


def test_every_training_logs_straightness_and_learns_the_same_without(
    small_data, tmp_path, monkeypatch
):
    """Also one whose windows hold no turn, having two frames."""
    found = {}
    for name in ("watched", "unwatched"):
        if name == "unwatched":
            monkeypatch.setattr(train, "beginnings", lambda *_, **__: None)
        flags = [
            "--training.window=2",
            "--training.updates=12",
            "--training.log-every=1",
            "--model.dropout=0.1",
        ]
        assert main(train_command(small_data, tmp_path / name, *flags)) == 0
        newest = checkpoints.latest(tmp_path / name)
        files = [(newest / f"{part}.safetensors").read_bytes() for part in ("weights", "optimiser")]
        lines = [
            json.loads(line)
            for line in (tmp_path / name / checkpoints.METRICS).read_text().splitlines()
        ]
        straight = [line.pop("straightness", None) for line in lines]
        found[name] = (
            files,
            [{key: value for key, value in line.items() if "second" not in key} for line in lines],
            straight,
        )
    assert found["watched"][:2] == found["unwatched"][:2]
    assert found["unwatched"][2] == [None] * 12
    logged = [value for value in found["watched"][2] if value is not None]
    assert len(logged) == 10
    assert all(-1 <= value <= 1 for value in logged)


def test_a_training_looks_at_its_first_report_ten_times_in_all_and_at_its_end(
    small_data, small_run, tmp_path
):
    def looked(run):
        lines = [json.loads(line) for line in (run / checkpoints.METRICS).read_text().splitlines()]
        return [line["update"] for line in lines if "straightness" in line]

    assert looked(small_run) == [5, 10, 15, 20, 25, 30]  # whenever it reports
    flags = [
        "--training.updates=25",
        "--training.log-every=1",
        "--training.window=3",
        "--training.batch-size=4",
    ]
    assert main(train_command(small_data, tmp_path, *flags)) == 0
    assert looked(tmp_path) == [1, 4, 6, 9, 11, 14, 16, 19, 21, 24, 25]
