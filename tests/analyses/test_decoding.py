"""A dot is drawn where it is, noise is not drawn, retrieval finds what it knows, and the model
never feels any of it."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lewm.analyses.decoding import Decoding, DecodingResult, fit_decoder, nearest
from lewm.contracts import DataSpec, Statistics
from lewm.models.nn.decoder import Decoder, Patches
from lewm.report.sections.decoding import draw
from lewm.runs.answers import load_result, save_result
from lewm.runs.run import Run, Unsupported
from lewm.training.fit import FittingConfig

SIZE, RADIUS, SPEED, FRAMESKIP = 32, 2.5, 1.0, 2
QUICK = Decoding(
    frames=600,
    updates=120,
    batch_size=256,
    test_frames=60,
    horizon=4,
    windows=12,
    clips=2,
    pictures=3,
    draws=40,
)


def dots(places):
    """(n, 2) x and y in pixels -> (n, h, h, 3) uint8: a red dot with soft edges, on white."""
    grid = np.arange(SIZE)
    square = (grid[None, None, :] - places[:, 0, None, None]) ** 2 + (
        grid[None, :, None] - places[:, 1, None, None]
    ) ** 2
    ink = np.clip(RADIUS + 0.5 - np.sqrt(square), 0, 1)
    return np.rint(255 * (1 - ink[..., None] * np.array([0, 1, 1]))).astype(np.uint8)


def centres(pictures):
    """(n, h, h, 3) -> (n, 2): where the ink is."""
    ink = 1 - pictures[..., 1] / 255
    ink = np.where(ink > 0.25, ink, 0)
    total = ink.sum(axis=(1, 2)) + 1e-9
    return np.stack(
        [(ink.sum(axis=1) @ np.arange(SIZE)) / total, (ink.sum(axis=2) @ np.arange(SIZE)) / total],
        axis=1,
    )


class DotModel(torch.nn.Module):
    """The latent is the place of the dot, read from the picture, and two numbers more that say
    nothing."""

    def __init__(self, context=2):
        super().__init__()
        self.spec = DataSpec(
            SIZE, FRAMESKIP, Statistics((0.5,) * 3, (0.5,) * 3, (0.0, 0.0), (1.0, 1.0))
        )
        self.context, self.latent_dim = context, 4
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))
        self.eval()

    def encode(self, pixels):
        ink = 1 - pixels[..., 1, :, :].float() / 255
        total, grid = ink.sum(dim=(-1, -2)), torch.arange(SIZE, dtype=torch.float32)
        x, y = (ink.sum(dim=-2) @ grid) / total, (ink.sum(dim=-1) @ grid) / total
        return self.weight * torch.stack([x, y, x - x, y - y], dim=-1)

    def rollout(self, context, past_actions, actions):
        assert past_actions.shape[1] == context.shape[1] - 1 == self.context - 1
        moves = SPEED * actions.unflatten(-1, (FRAMESKIP, 2)).sum(dim=-2)
        return context[:, -1, None, None] + torch.nn.functional.pad(moves, (0, 2)).cumsum(dim=2)


class DotEpisodes:
    """Walks of a dot that are known exactly: row t + 1 is row t and its action."""

    has_states, state_names, every, action_dim, image_size, path = False, (), 1, 2, SIZE, "dots.h5"

    def __init__(self, count=40, length=24):
        generator = np.random.default_rng(5)
        self.lengths, self.offsets = np.full(count, length), np.arange(count) * length
        starts = generator.uniform(12, 20, (count, 1, 2))
        headings = generator.normal(size=(count, 1, 2)) * 0.12
        self._actions = np.clip(
            headings + 0.2 * generator.normal(size=(count, length, 2)), -1, 1
        ).astype(np.float32)
        walked = starts + SPEED * np.cumsum(self._actions, axis=1)
        self.places = np.concatenate([starts, walked[:, :-1]], axis=1)
        self.inside = bool((self.places > 3).all() and (self.places < SIZE - 4).all())
        self._actions[:, -1] = np.nan

    def actions(self, i):
        return self._actions[i].copy()

    def rows(self, column, indices):
        assert column == "pixels"
        return dots(self.places.reshape(-1, 2)[indices])


@pytest.fixture(scope="module")
def opened():
    return Run(DotModel(), DotEpisodes(), range(28), range(28, 40))


@pytest.fixture(scope="module")
def known():
    """600 places and their pictures, and 60 others."""
    generator = np.random.default_rng(0)
    places = generator.uniform(4, SIZE - 5, (660, 2))
    return places.astype(np.float32), dots(places)


@pytest.fixture(scope="module")
def decoder(known):
    places, pixels = known
    return fit_decoder(
        places[:600], pixels[:600], FittingConfig(updates=400, batch_size=384, learning_rate=5e-3)
    )


@pytest.fixture(scope="module")
def result(opened):
    return QUICK.run(opened)


def squared_error(truth, drawn):
    return np.square((truth.astype(float) - drawn) / 255).mean()


def test_the_dot_is_drawn_where_it_is(decoder, known):
    places, pixels = known
    drawn = decoder.draw(places[600:])
    assert drawn.shape == (60, SIZE, SIZE, 3)
    assert np.linalg.norm(centres(drawn) - places[600:], axis=1).max() < 1
    assert squared_error(pixels[600:], drawn) < 0.2 * squared_error(
        pixels[600:], decoder.mean_picture
    )


def test_latents_that_say_nothing_draw_no_better_than_the_mean_picture(known):
    places, pixels = known
    shuffled = np.random.default_rng(1).permutation(places[:600])
    null = fit_decoder(
        shuffled, pixels[:600], FittingConfig(updates=100, batch_size=256, learning_rate=4e-3)
    )
    floor = squared_error(pixels[600:], null.mean_picture)
    assert squared_error(pixels[600:], null.draw(places[600:])) > 0.99 * floor


def test_it_begins_as_the_mean_picture(known):
    places, pixels = known
    patches = Patches.of(pixels)
    fresh = Decoder(2, SIZE)
    fresh.mean.copy_(torch.from_numpy(patches.mean))
    np.testing.assert_array_equal(
        fresh.draw(places[:3]), np.broadcast_to(fresh.mean_picture, (3, SIZE, SIZE, 3))
    )
    assert np.abs(fresh.mean_picture - pixels.mean(axis=0)).max() <= 0.51


def test_the_same_seed_gives_the_same_bits(known):
    places, pixels = known

    def weights(seed):
        fitted = fit_decoder(
            places[:100], pixels[:100], FittingConfig(updates=5, batch_size=64, seed=seed)
        )
        torch.rand(3)  # whatever else is drawn between
        return torch.cat([tensor.flatten() for tensor in fitted.state_dict().values()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_patches_are_cut_and_put_together_without_a_seam():
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    patches = Patches.of(pixels)
    decoder = Decoder(3, SIZE)
    decoder.mean.copy_(
        torch.from_numpy(patches.tiles[2].reshape(len(patches.mean), -1) / np.float32(255))
    )
    np.testing.assert_array_equal(decoder.mean_picture, pixels[2])
    frames, places, shown = patches.draw(40, np.random.default_rng(1))
    there = patches.tiles.reshape(5, len(patches.mean), -1)[frames, places]
    np.testing.assert_allclose(
        255 * (patches.mean[places] + patches.scale * shown), there, atol=1e-3
    )


def test_what_moves_is_drawn_more_often_than_what_is_empty(known):
    _, pixels = known
    patches = Patches.of(pixels)
    frames, places, _ = patches.draw(4000, np.random.default_rng(0))
    inked = (patches.tiles.reshape(len(pixels), len(patches.mean), -1) < 255).any(axis=2)
    assert inked[frames, places].mean() > 3 * inked.mean()
    assert len(np.unique(places)) == len(patches.mean)


@pytest.mark.parametrize(
    ("image_size", "patches"), [(64, 64), (224, 196), (96, 64), (4, 16), (37, 1369)]
)
def test_patches_fit_the_picture(image_size, patches):
    decoder = Decoder(6, image_size, width=16)
    assert (
        decoder(torch.zeros(2, 1, 6), torch.arange(patches)).shape[:2]
        == (2, patches)
        == (2, len(decoder.queries))
    )


def test_retrieval_finds_the_frame_itself_and_else_the_nearest():
    bank = np.random.default_rng(0).normal(size=(700, 5)).astype(np.float32) + 1000
    np.testing.assert_array_equal(nearest(bank, bank), np.arange(700))
    np.testing.assert_array_equal(
        nearest(bank, bank[:6].reshape(2, 3, 5)), np.arange(6).reshape(2, 3)
    )
    line = np.array([[0.0], [10.0]], np.float32)
    assert nearest(line, np.array([[4.9], [5.1]], np.float32)).tolist() == [0, 1]


def test_no_gradient_and_no_bit_reaches_the_model(opened):
    model = DotModel()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = replace(QUICK, updates=2).run(replace(opened, model=model))
    assert again.updates == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_an_exact_model_imagines_what_it_would_see(opened, result):
    values = result
    assert opened.episodes.inside
    assert values.horizon == 4
    assert values.windows == 12
    curves = {name: curve.share for name, curve in vars(values.imagination).items()}
    np.testing.assert_allclose(curves["imagined"], curves["encoded"], atol=0.02)
    assert curves["copy"][0] == 0
    assert curves["copy"][4] > 2 * curves["nearest"][4]
    for curve in vars(values.imagination).values():
        assert all(
            low <= share <= high
            for low, share, high in zip(curve.low, curve.share, curve.high, strict=True)
        )


def test_scores_stand_beside_their_floor(result):
    scores = result.reconstruction
    assert scores.decoder.share < 0.9 < scores.mean_picture.share == 1 < scores.other_latents.share
    assert scores.decoder.psnr == pytest.approx(-10 * np.log10(scores.decoder.mse))
    assert (
        scores.decoder.share_interval[0] < scores.decoder.share < scores.decoder.share_interval[1]
    )


def test_the_same_run_gives_the_same_numbers_and_the_stored_decoder_draws_them(
    opened, result, tmp_path
):
    again = QUICK.run(opened)
    timed = {"seconds", "milliseconds"}
    assert {k: v for k, v in again.to_json().items() if k not in timed} == {
        k: v for k, v in result.to_json().items() if k not in timed
    }
    assert all(
        np.array_equal(array, again.arrays()[name]) for name, array in result.arrays().items()
    )
    save_result(tmp_path, result, {})
    stored, _ = load_result(tmp_path, DecodingResult)
    truth = stored.films.truth
    latents = opened.model.encode(torch.from_numpy(truth).permute(0, 1, 4, 2, 3)).detach().numpy()
    np.testing.assert_array_equal(stored.decoder().draw(latents), stored.films.encoded)


class AstrayModel(DotModel):
    """It imagines the dot some pixels to the right of where it goes."""

    ASTRAY = 4.0

    def rollout(self, context, past_actions, actions):
        ahead = super().rollout(context, past_actions, actions)
        return ahead + torch.tensor([self.ASTRAY, 0.0, 0.0, 0.0])


def test_each_way_is_drawn_from_what_it_is_named_after():
    """What is encoded follows what came; what is imagined, and its nearest frame, go astray."""
    run = Run(AstrayModel(), DotEpisodes(60), range(48), range(48, 60))
    found = replace(QUICK, frames=1200, updates=2, clips=12).run(run)
    films = found.films
    came = np.stack([centres(film) for film in films.truth])  # (n, 1 + H, 2)
    drawn = np.stack([centres(film) for film in films.nearest]) - came
    np.testing.assert_allclose(drawn[:, 0].mean(axis=0), 0, atol=0.7)  # it starts where it is
    right = drawn[:, 1:, 0].mean(axis=0)
    assert (right > AstrayModel.ASTRAY / 2).all(), "as far as frames that are known lie there"
    decoder = found.decoder()
    seen = run.model.encode(torch.from_numpy(films.truth).permute(0, 1, 4, 2, 3)).detach().numpy()
    np.testing.assert_array_equal(decoder.draw(seen), films.encoded)
    astray = seen + np.float32([AstrayModel.ASTRAY, 0, 0, 0]) * (np.arange(5) > 0)[:, None]
    exact = np.abs(decoder.draw(astray).astype(int) - films.imagined)
    assert exact.max() <= 1, "pictures of a walk are read to a fraction of a pixel"


class SparseDots(DotEpisodes):
    """The same walks, recorded with a row per block."""

    every = FRAMESKIP

    def __init__(self):
        super().__init__()
        count, steps = self.places.shape[:2]
        self.dense, self.places = self.places, self.places[:, ::FRAMESKIP]
        self._actions = self._actions.reshape(count, steps // FRAMESKIP, -1)
        self.lengths = np.full(count, steps // FRAMESKIP)
        self.offsets = np.arange(count) * self.lengths


@pytest.mark.parametrize("episodes", [DotEpisodes(), SparseDots()])
def test_a_clip_begins_where_it_says_and_its_pictures_are_blocks_apart(episodes):
    found = replace(QUICK, updates=1, clips=12).run(
        Run(DotModel(), episodes, range(28), range(28, 40))
    )
    walks = getattr(episodes, "dense", episodes.places)
    assert len(found.clips) == 12
    for clip, film in zip(found.clips, found.films.truth, strict=True):
        steps = clip.env_step + FRAMESKIP * np.arange(1 + found.horizon)
        np.testing.assert_array_equal(film, dots(walks[clip.episode, steps]))


def test_large_pictures_are_stored_small():
    from lewm.analyses.decoding import _shown

    pictures = np.zeros((2, 3, 260, 260, 3), np.uint8)
    pictures[..., :3, :3, :] = 90
    small = _shown(pictures)
    assert small.shape == (2, 3, 86, 86, 3)
    assert (small[..., 0, 0, :] == 90).all()
    assert small.sum() == 2 * 3 * 3 * 90


def test_what_cannot_be_imagined_is_refused():
    def asked(length, test=range(28, 40)):
        return Run(DotModel(), DotEpisodes(length=length), range(28), test)

    with pytest.raises(Unsupported, match="held-out"):
        QUICK.run(asked(24, range(28, 33)))
    with pytest.raises(Unsupported, match="at least 10 held-out episodes of 5 rows"):
        QUICK.run(asked(4))
    assert replace(QUICK, updates=1).run(asked(9)).horizon == 3


def test_figures_draw_a_stored_result(result):
    reconstruction, *clips, curve = draw(result)
    assert len(clips) == QUICK.clips
    for panel in (reconstruction, *clips):
        assert not panel.svg
        assert Image.open(BytesIO(panel.still)).format == "WEBP"
        assert getattr(Image.open(BytesIO(panel.still)), "n_frames", 1) == 1
    for panel in clips:
        moving = Image.open(BytesIO(panel.webp))
        assert moving.n_frames == 1 + result.horizon
    drawn = ElementTree.fromstring(curve.svg)
    assert drawn.tag.endswith("svg")
    assert "script" not in curve.svg
