"""Numbers behind the page's widgets, held against Python."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lewm.analyses.economy import COMPUTED, PUBLISHED
from lewm.analyses.surprise import score
from lewm.models.nn.sigreg import draw_directions, sigreg_per_slice, sigreg_reference
from tests.support.exported import CONFIGS, heads_of, lewm, run_of, written
from tests.support.node import needs_node, node

pytestmark = needs_node


def cloud_of(rows, dim, seed=0):
    """Neither centred, nor round, nor Gaussian."""
    generator = np.random.default_rng(seed)
    return generator.standard_t(4, (rows, dim)) * generator.uniform(0.2, 2, dim) + 0.3


def test_the_statistic_is_that_of_training(tmp_path):
    cloud = cloud_of(90, 12)
    directions = draw_directions(12, 7, torch.Generator().manual_seed(0), dtype=torch.float64)
    answer = node(
        tmp_path,
        "statistics",
        {"rule": {"knots": 17, "last": 3.0}, "spoilt": {}},
        cloud=cloud,
        directions=directions.T.numpy(),
    )
    latents = torch.from_numpy(cloud)[:, None]
    expected = sigreg_per_slice(latents, directions)
    assert expected.max() > 2 * expected.min(), "directions differ"
    np.testing.assert_allclose(answer["slices"], expected.flatten(), rtol=1e-10)
    assert answer["mean"] == pytest.approx(float(sigreg_reference(latents, directions)), rel=1e-10)
    np.testing.assert_allclose(answer["cloud"].reshape(cloud.shape), cloud, atol=1e-12)


def test_a_gaussian_cloud_has_about_one_and_a_collapsed_one_its_size(tmp_path):
    cloud = np.random.default_rng(0).standard_normal((256, 16))
    directions = draw_directions(16, 64, torch.Generator().manual_seed(1), dtype=torch.float64)
    given = {"cloud": cloud, "directions": directions.T.numpy()}
    rule = {"knots": 17, "last": 3.0}
    fine = node(tmp_path, "statistics", {"rule": rule, "spoilt": {}}, **given)["mean"]
    gone = node(tmp_path, "statistics", {"rule": rule, "spoilt": {"collapse": 1}}, **given)["mean"]
    assert 0.8 < fine < 1.3
    assert gone > 50


def test_a_cloud_is_spoilt_as_the_sliders_say(tmp_path):
    cloud = cloud_of(50, 6)
    axis = np.array([0.6, 0, 0.8, 0, 0, 0])
    spoilt = {"squash": 0.25, "shift": 1.5, "collapse": 0.4}
    answer = node(
        tmp_path,
        "statistics",
        {"rule": {"knots": 17, "last": 3.0}, "spoilt": spoilt},
        cloud=cloud,
        directions=axis[None],
    )
    middle = cloud.mean(axis=0)
    apart = cloud - middle
    apart -= 0.25 * (apart @ axis)[:, None] * axis
    np.testing.assert_allclose(
        answer["cloud"].reshape(cloud.shape), middle + 0.6 * apart + 1.5 * axis, atol=1e-12
    )


def test_the_widest_plane_and_the_histogram(tmp_path):
    cloud = np.random.default_rng(0).standard_normal((80, 9)) * [1, 5, 1, 1, 3, 1, 1, 1, 1] + 7
    values = np.random.default_rng(1).standard_normal(300) * 2
    answer = node(tmp_path, "plane", {"bins": 20, "low": -4, "high": 4}, cloud=cloud, values=values)
    _, _, axes = np.linalg.svd(cloud - cloud.mean(axis=0))
    found = answer["axes"].reshape(2, 9)
    np.testing.assert_allclose(np.abs((found * axes[:2]).sum(axis=1)), 1, atol=1e-6)
    counts, _ = np.histogram(values, np.linspace(-4, 4, 21))
    np.testing.assert_allclose(answer["density"], counts / (300 * 0.4), atol=1e-12)
    x = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(answer["normal"], np.exp(-x * x / 2) / np.sqrt(2 * np.pi))


@pytest.mark.parametrize("config", ["overlap", "conv stem"])
def test_surprise_is_that_of_the_analysis(small_data, tmp_path, config):
    """Of pictures that a whole context stood before; the first one surprises nobody."""
    model = lewm(**CONFIGS[config])
    run = run_of(small_data, model, heads_of(model))
    _, file = written(run, tmp_path)
    settings = {"exported": str(file), "blocks": 9, "planner": "amortised"}
    starts = np.array([[60.0, 160.0]], np.float32)
    goals = np.array([[170.0, 60.0]], np.float32)
    answer = node(tmp_path, "mind", settings, starts=starts, goals=goals)
    latents = torch.from_numpy(answer["latents"].copy()).view(1, 9, -1)
    actions = answer["actions"].reshape(1, 9, 5, 2)[:, :-1]
    expected = score(model, latents, actions)[0]
    assert expected.min() > 1e-6
    assert answer["first"] is None
    np.testing.assert_allclose(answer["surprises"][model.context - 1 :], expected, rtol=2e-3)
    # and what is drawn is what the probe reads of what was imagined
    A = model.spec.block_dim
    assert answer["path"].shape == (2 * 4,)
    if model.context == 1:
        ahead = model.rollout(
            latents[:, -1:],
            torch.empty(1, 0, A),
            torch.from_numpy(answer["plan"].copy()).view(1, 1, 4, A),
        )
        np.testing.assert_allclose(answer["ahead"], ahead.flatten(), rtol=0, atol=5e-5)


def test_the_search_is_drawn_round_by_round(small_data, tmp_path):
    model = lewm(**CONFIGS["overlap"])
    run = run_of(small_data, model, heads_of(model))
    _, file = written(run, tmp_path)
    settings = {"exported": str(file), "blocks": 1, "planner": "cem"}
    place = np.array([[60.0, 160.0]], np.float32)
    answer = node(tmp_path, "mind", settings, starts=place, goals=place + 20)
    assert [len(one["elites"]) for one in answer["rounds"]] == [8] * 5
    assert [one["points"] for one in answer["rounds"]] == [64 * 4 * 2] * 5
    assert [one["number"] for one in answer["rounds"]] == [64] * 5
    best = [one["best"] for one in answer["rounds"]]
    assert best[-1] < best[0], "the swarm gets somewhere"


def test_the_bill_is_a_product(tmp_path):
    models = [
        {"name": "one", "tokens": 1, "predict": 0.5, "encode": 3.0},
        {"name": "many", "tokens": 196, "predict": None, "encode": None},
    ]
    plan = {"candidates": 300, "horizon": 5, "iterations": 30}
    one, many = node(tmp_path, "bill", {"models": models, "plan": plan})["bills"]
    assert one == {"name": "one", "frames": 45_000, "tokens": 45_000, "gflop": 22_506.0}
    assert many == {"name": "many", "frames": 45_000, "tokens": 8_820_000, "gflop": None}


def test_dots_and_short_numbers(tmp_path):
    numbers = [0, 0.0186, 0.5, 1, 12.34, 196, 999.9, 1000, 45_000, 8_820_000, 3.6e8, 2e12, 5e15]
    answer = node(
        tmp_path, "small", {"numbers": numbers, "dots": [[1, 180], [196, 180], [8100, 140]]}
    )
    assert answer["short"] == [
        "0", "0.019", "0.5", "1", "12.3", "196", "1 k", "1 k", "45 k", "8.82 M", "360 M", "2 T",
        "5000 T",
    ]  # fmt: skip
    one, many, sora = answer["dots"]
    assert (one["columns"], one["drawn"]) == (1, True)
    assert (many["columns"], many["drawn"]) == (14, True)
    assert (sora["columns"], sora["drawn"]) == (90, False)


def test_a_link_holds_the_state_and_damaged_ones_are_left_out(tmp_path):
    state = {"agent": [60.04, 20], "goal": [170, 60.26], "planner": "cem", "layout": None}
    kinds = {"agent": 2, "goal": 2, "planner": ["cem", "amortised"]}
    damaged = [
        "#agent=1,2,3&goal=4",
        "#agent=nan,2&planner=<script>&goal=1e999,2",
        "#goal=,5&&=&x&agent",
        "#planner=%E0%A4%A&__proto__=1,2&goal=5,6",
        "",
    ]
    answer = node(tmp_path, "links", {"state": state, "kinds": kinds, "damaged": damaged})
    assert answer["fragment"] == "agent=60,20&goal=170,60.3&planner=cem"
    assert answer["again"] == {"agent": [60, 20], "goal": [170, 60.3], "planner": "cem"}
    assert answer["read"] == [{}, {}, {}, {"goal": [5, 6]}, {}]


def test_a_gif_is_read_back(tmp_path):
    """By Pillow: as many pictures, of the size, and every pixel the nearest colour. The pictures
    are noisy enough to fill the table of codes again and again."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (2, 90, 90, 4), dtype=np.uint8)
    noise[1, :, :, :3] = np.arange(90, dtype=np.uint8)[:, None, None] * 2
    answer = node(tmp_path, "gif", {"size": 90, "delays": [100, 1500]}, frames=noise)
    picture = Image.open(io.BytesIO(answer["gif"].tobytes()))
    assert picture.n_frames == 2
    for i, delay in enumerate([100, 1500]):
        picture.seek(i)
        assert picture.info["duration"] == delay
        shown = np.asarray(picture.convert("RGB")).astype(int)
        assert shown.shape == (90, 90, 3)
        assert np.abs(shown - noise[i, :, :, :3]).max() <= 26


def test_numbers_of_others_are_those_of_the_analysis():
    from lewm.lab.page import SHOWN, _economy

    told = _economy()
    by_name = {one.name: one for one in PUBLISHED}
    assert [one["name"] for one in told["models"]] == list(SHOWN)
    for one in told["models"]:
        known = by_name[one["name"]]
        assert (one["tokens"], one["seconds"]) == (known.tokens, known.seconds)
    assert told["search"] == by_name["LeWM"].search == (300, 5, 30)
    assert told["models"][0]["predict"] == COMPUTED[0].predict
    assert [one["predict"] is None for one in told["models"]] == [False] * 3 + [True] * 2
