"""What does a latent look like? Pictures drawn from latents alone, of frames that were seen and of
frames that were imagined.

A decoder is for looking: it learns on frozen latents, and nothing of it ever reaches the model.
What it draws well, the latent holds. What it draws badly, the latent may hold in a form that is
hard to draw, so beside it stands what needs no training: the frame, of those that the decoder
learnt from, whose latent is nearest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lewm.contracts import Progress, Report, WorldModel, check_numbers, silent
from lewm.data.episodes import Episodes
from lewm.models.nn.decoder import Decoder, Patches
from lewm.models.nn.frozen import FRAMES_AT_ONCE, device_of, encode, require_evaluation_mode
from lewm.runs.results import Interval, Result, Tables
from lewm.runs.run import Run, Unsupported
from lewm.stats import FEWEST_GROUPS, bootstrap, bootstrap_mean
from lewm.training.fit import FittingConfig, descend

__all__ = ["Decoding", "DecodingResult", "fit_decoder", "nearest"]  # the analysis first

MOST_PIXEL_BYTES = 256 << 20
"""Of the frames that are learnt from; at 224 px that is some 1,700."""

LARGEST_SHOWN_PX = 128
"""Side of a stored picture; larger ones are averaged down, so that a result stays a few
megabytes."""

REDRAWN = {
    "decoder": "decoder",
    "nearest": "nearest frame",
    "other_latents": "decoder, latents of other frames",
    "mean_picture": "mean picture",
}
IMAGINED = {
    "imagined": "imagined",
    "encoded": "encoded",
    "nearest": "nearest frame",
    "copy": "first frame kept",
}
"""Ways to draw a held-out frame, and what is drawn of an imagined way -> what tables call them."""


def fit_decoder(
    latents: np.ndarray,
    pixels: np.ndarray,
    config: FittingConfig,
    device: torch.device | str = "cpu",
    report: Report = silent,
) -> Decoder:
    """Learn to draw frames from their latents, by the squared error of patches.

    Args:
        latents: (F, D).
        pixels: (F, h, h, 3) uint8, the frames that they are of.
        config: its `batch_size` counts patches.

    Cost: per update one pass through the decoder for `batch_size` patches, whatever the size of the
    pictures.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        decoder = Decoder(latents.shape[1], pixels.shape[1])
    patches, known = Patches.of(pixels), torch.from_numpy(latents).float()
    decoder.mean.copy_(torch.from_numpy(patches.mean))
    decoder.scale.fill_(patches.scale)
    decoder.latent_mean.copy_(known.mean(dim=0))
    std = known.std(dim=0)
    # a number that never varies, such as what only imagined latents carry, is not blown up
    decoder.latent_std.copy_(std.where(std > 1e-6, 1.0))
    decoder.to(device)

    def loss(update: int) -> Tensor:
        frames, places, shown = patches.draw(
            config.batch_size, np.random.default_rng((config.seed, update))
        )
        drawn = decoder(known[frames].to(device), torch.from_numpy(places).to(device))
        return (drawn - torch.from_numpy(shown).to(device)).square().mean()

    descend(decoder, loss, config, report)
    return decoder


def nearest(bank: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """(F, D) latents of a bank and (..., D) others -> (...) number of the one in the bank that is
    nearest to each, by L2."""
    # in float32, near twins tie
    bank, flat = (np.asarray(of, np.float64).reshape(-1, of.shape[-1]) for of in (bank, latents))
    norms = np.square(bank).sum(axis=1)
    parts = np.array_split(flat, -(-len(flat) // FRAMES_AT_ONCE))
    return np.concatenate([(norms - 2 * part @ bank.T).argmin(axis=1) for part in parts]).reshape(
        latents.shape[:-1]
    )


@dataclass(frozen=True)
class Drawn:
    """One way of drawing held-out frames: squared errors of pixels in [0, 1].

    Attributes:
        share: of the error that the mean picture makes on the same frames; 0 is perfect.
        psnr: in dB.
    """

    mse: float
    mse_interval: Interval
    share: float
    share_interval: Interval
    psnr: float


@dataclass(frozen=True)
class Reconstruction:
    """Ways of drawing held-out frames.

    Attributes:
        decoder: from their latents.
        nearest: the frame that was learnt from whose latent is nearest.
        other_latents: a control, the decoder given the latents of other frames.
        mean_picture: the same for all.
    """

    decoder: Drawn
    nearest: Drawn
    other_latents: Drawn
    mean_picture: Drawn


@dataclass(frozen=True)
class Course:
    """Share of the mean picture's error after 0, 1, ... blocks, with its 95% band over windows."""

    share: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Imagination:
    """How far pictures of an imagined way are off.

    Attributes:
        imagined: decoded from imagined latents.
        encoded: the decoder's own error, on the frames that came.
        nearest: the frame nearest to the imagined latent.
        copy: the frame it starts from.
    """

    imagined: Course
    encoded: Course
    nearest: Course
    copy: Course


@dataclass(frozen=True)
class Start:
    """Where a way that is shown begins."""

    episode: int
    env_step: int


@dataclass(frozen=True)
class Milliseconds:
    """Per picture."""

    decoder: float
    nearest: float


@dataclass(frozen=True)
class Seconds:
    """Of fitting, and of everything."""

    fit: float
    all: float


@dataclass(frozen=True)
class Pictures:
    """(n, h, h, 3) uint8 held-out frames, as they were and as they are drawn, at equal steps of
    rank by the decoder's error."""

    truth: np.ndarray
    decoded: np.ndarray
    nearest: np.ndarray


@dataclass(frozen=True)
class Films:
    """(n, 1 + H, h, h, 3) uint8 ways, at equal steps of rank by how much moves."""

    truth: np.ndarray
    encoded: np.ndarray
    imagined: np.ndarray
    nearest: np.ndarray


@dataclass(frozen=True)
class DecodingResult(Result):
    """What latents look like, with 95% intervals over held-out episodes.

    As a number alone an error says little, most pixels being the same in all frames: each is given
    as a share of the error that the mean picture makes too.

    Attributes:
        learnt_share: that of the decoder on frames it learnt from.
        closer_than_copy: blocks after which what is imagined is closer than the frame it starts
            from, by a paired interval.
        horizon: H, blocks that are imagined.
        clips: the ways that `films` shows.
        weights: of the decoder.
    """

    reconstruction: Reconstruction
    learnt_share: float
    imagination: Imagination
    closer_than_copy: tuple[int, ...]
    horizon: int
    frameskip: int
    clips: tuple[Start, ...]
    fit_frames: int
    fit_episodes: int
    test_frames: int
    test_episodes: int
    windows: int
    updates: int
    milliseconds: Milliseconds
    seconds: Seconds
    pictures: Pictures
    films: Films
    weights: Mapping[str, np.ndarray]

    name: ClassVar[str] = "decoding"

    def decoder(self) -> Decoder:
        """The decoder that drew the pictures."""
        return Decoder.of(self.weights)

    def tables(self) -> Tables:
        """A row per way of drawing, and per imagined block."""
        learnt = f"{self.fit_frames:,} frames of {self.fit_episodes:,} episodes"
        test = f"{self.test_frames} frames of {self.test_episodes} held-out episodes"
        drawn = [
            {
                "drawn by": words,
                "share of the mean picture's error": round(score.share, 3),
                "95% interval": "{:.3f} to {:.3f}".format(*score.share_interval),
                "MSE": float(f"{score.mse:.3g}"),
                "PSNR, dB": round(score.psnr, 1),
                "ms a picture": getattr(self.milliseconds, name, ""),
            }
            for name, words in REDRAWN.items()
            if (score := getattr(self.reconstruction, name))
        ]
        ahead = [
            {"blocks": block, "env steps": block * self.frameskip}
            | {
                words: round(getattr(self.imagination, name).share[block], 3)
                for name, words in IMAGINED.items()
            }
            for block in range(self.horizon + 1)
        ]
        return {
            f"Pictures of {test}; decoder and nearest frame know {learnt}": drawn,
            (
                f"Share of the mean picture's error while imagining, {self.windows} held-out "
                "episodes"
            ): ahead,
        }


@dataclass(frozen=True)
class Decoding:
    """Fit a decoder to frames of some episodes, and let it draw what the model encodes and imagines
    of others.

    Attributes:
        frames: to learn from, drawn at random, at most; fewer of large pictures
            (`MOST_PIXEL_BYTES`).
        updates, batch_size, learning_rate: of the decoder; the batch is one of patches. A fixed
            number of updates rather than of seconds, so that the same weights come out: 90 s on one
            core, and that nearly whatever the size of the pictures.
        test_frames: of held-out episodes, to measure on, at most.
        horizon: action blocks that are imagined, at most; fewer where half of the held-out episodes
            are shorter.
        windows: held-out episodes of which such a way is imagined, at most, one each.
        pictures: reconstructions to show.
        clips: imagined ways to show.
        draws: of the bootstrap over held-out episodes.
        seed: of frames, decoder, windows and bootstrap.
    """

    frames: int = 16_000
    updates: int = 3000
    batch_size: int = 1024
    learning_rate: float = 2e-3
    test_frames: int = 512
    horizon: int = 12
    windows: int = 64
    pictures: int = 6
    clips: int = 4
    draws: int = 500
    seed: int = 0

    name: ClassVar[str] = "decoding"
    question: ClassVar[str] = "What does a latent look like, and what does the model imagine?"
    result: ClassVar[type[Result]] = DecodingResult

    def __post_init__(self) -> None:
        least = {each.name: 1 for each in fields(self)}
        check_numbers(self, least | {"frames": 2, "learning_rate": 0, "seed": 0})

    def run(self, run: Run, report: Report = silent) -> DecodingResult:
        """Learn to draw, and measure it on episodes that neither model nor decoder saw.

        Raises:
            Unsupported: too few or too short held-out episodes.
            ValueError: the model is in training mode.
        """
        began = time.perf_counter()
        model, episodes = run.model, run.episodes
        require_evaluation_mode(model)
        run.require_episodes(2, FEWEST_GROUPS, "an interval over episodes")
        generator = np.random.default_rng(self.seed)
        # first, since it may refuse
        windows = _Windows.drawn(run, self.horizon, self.windows, generator)
        frames = max(2, min(self.frames, MOST_PIXEL_BYTES // (3 * episodes.image_size**2)))
        rows, _ = _sample(episodes, run.fit_ids, frames, generator)
        test_rows, groups = _sample(episodes, run.test_ids, self.test_frames, generator)
        steps = -(-len(rows) // FRAMES_AT_ONCE) + self.updates
        pixels, bank = _seen(
            model, episodes, rows, lambda done: report(Progress(self.name, done, steps, "encode"))
        )
        config = FittingConfig(
            self.updates, self.batch_size, self.learning_rate, weight_decay=1e-4, seed=self.seed
        )
        fitting = time.perf_counter()
        decoder = fit_decoder(
            bank,
            pixels,
            config,
            device_of(model),
            lambda p: report(replace(p, done=steps - p.total + p.done, total=steps)),
        )
        fitted = time.perf_counter()
        mean = decoder.mean_picture
        learnt = np.linspace(0, len(rows) - 1, min(self.test_frames, len(rows))).astype(int)
        learnt_share = (
            _errors(pixels[learnt], decoder.draw(bank[learnt])).mean()
            / _errors(pixels[learnt], mean).mean()
        )

        truth, latents = _seen(model, episodes, test_rows)
        drawn, retrieved = decoder.draw(latents), pixels[nearest(bank, latents)]
        # rows are in the order of the file: of other episodes
        others = np.roll(drawn, len(drawn) // 2, axis=0)
        ways = {
            "decoder": drawn,
            "nearest": retrieved,
            "other_latents": others,
            "mean_picture": mean,
        }
        errors = {name: _errors(truth, pictures) for name, pictures in ways.items()}
        scores = {
            name: self._score(of, errors["mean_picture"], groups) for name, of in errors.items()
        }

        shown, seen = _seen(model, episodes, windows.rows)  # (W, K + H, ...)
        past = model.context - 1
        imagined = np.concatenate(
            [seen[:, past : past + 1], windows.imagined(model, seen[:, : past + 1])], axis=1
        )
        shown, seen = shown[:, past:], seen[:, past:]
        films = {
            "imagined": decoder.draw(imagined),
            "encoded": decoder.draw(seen),
            "nearest": pixels[nearest(bank, imagined)],
        }
        misses = {name: _errors(shown, pictures) for name, pictures in films.items()} | {
            "copy": _errors(shown, shown[:, :1])
        }
        blank = float(_errors(shown, mean).mean())
        courses = {name: self._curve(of / blank) for name, of in misses.items()}
        closer = self._curve(misses["imagined"] - misses["copy"]).high

        by_error = _spread(errors["decoder"], self.pictures)
        by_motion = _spread(misses["copy"].mean(axis=1), self.clips)
        ready = bank.astype(np.float64)
        milliseconds = Milliseconds(
            decoder=_milliseconds(lambda: decoder.draw(latents[:1])),
            nearest=_milliseconds(lambda: nearest(ready, latents[:1])),
        )
        return DecodingResult(
            reconstruction=Reconstruction(**scores),
            learnt_share=float(learnt_share),
            imagination=Imagination(**courses),
            closer_than_copy=tuple(h for h, high in enumerate(closer) if h and high < 0),
            horizon=windows.horizon,
            frameskip=model.spec.frameskip,
            clips=tuple(
                Start(int(windows.episodes[w]), int(windows.starts[w] * episodes.every))
                for w in by_motion
            ),
            fit_frames=len(rows),
            fit_episodes=len(run.fit_ids),
            test_frames=len(test_rows),
            test_episodes=len(np.unique(groups)),
            windows=len(windows.rows),
            updates=self.updates,
            milliseconds=milliseconds,
            seconds=Seconds(
                fit=round(fitted - fitting, 1), all=round(time.perf_counter() - began, 1)
            ),
            pictures=Pictures(*(_shown(of[by_error]) for of in (truth, drawn, retrieved))),
            films=Films(
                **{name: _shown(of[by_motion]) for name, of in {"truth": shown, **films}.items()}
            ),
            weights={name: of.cpu().numpy() for name, of in decoder.state_dict().items()},
        )

    def _score(self, errors: np.ndarray, floor: np.ndarray, groups: np.ndarray) -> Drawn:
        """Of one way to draw the test frames, beside the mean picture."""
        mse = float(errors.mean())
        return Drawn(
            mse=mse,
            mse_interval=bootstrap_mean(errors, groups, self.draws, seed=self.seed),
            share=mse / float(floor.mean()),
            share_interval=bootstrap(
                lambda a, b: float(a.mean() / b.mean()),
                errors,
                floor,
                groups=groups,
                draws=self.draws,
                seed=self.seed,
            ),
            psnr=-10 * math.log10(max(mse, 1e-10)),
        )

    def _curve(self, errors: np.ndarray) -> Course:
        """(W, 1 + H) per window and block -> the mean over windows with its 95% interval, block by
        block."""
        windows = np.arange(len(errors))
        bounds = [
            bootstrap_mean(column, windows, self.draws, seed=self.seed) for column in errors.T
        ]
        low, high = zip(*bounds, strict=True)
        return Course(tuple(errors.mean(axis=0).tolist()), low, high)


@dataclass(frozen=True)
class _Windows:
    """Recorded ways to imagine: K frames, and H blocks from the last of them on.

    Attributes:
        episodes, starts: (W,) and the row of the episode that the way begins at.
        rows: (W, K + H) of the file, a block apart.
        blocks: (W, K - 1 + H, A) normalised, one between each frame and the next.
        horizon: H.
    """

    episodes: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    blocks: Tensor
    horizon: int

    @classmethod
    def drawn(cls, run: Run, horizon: int, count: int, generator: np.random.Generator) -> _Windows:
        """One window of each of at most so many held-out episodes, from a start drawn at random."""
        model, episodes, spec = run.model, run.episodes, run.model.spec
        stride, left_over = divmod(spec.frameskip, episodes.every)
        if left_over:
            raise Unsupported(
                f"{episodes.path}: expected rows that a block of {spec.frameskip} env steps is "
                f"made of, got one per {episodes.every}. Use the episodes that the run was "
                "trained on."
            )
        ids = np.asarray(run.test_ids)
        past = model.context - 1
        reach = (episodes.lengths[ids] - 1) // stride - past
        horizon = min(horizon, int(np.median(reach)))
        long = np.sort(generator.permutation(ids[reach >= horizon])[:count])
        if horizon < 1 or len(long) < FEWEST_GROUPS:
            raise Unsupported(
                f"{episodes.path}: expected at least {FEWEST_GROUPS} held-out episodes of "
                f"{(past + 1) * stride + 1} rows or more, to imagine a block, got {len(long)} and "
                f"a median of {int(np.median(episodes.lengths[ids]))} rows. Collect longer "
                "episodes."
            )
        starts = generator.integers(past * stride, episodes.lengths[long] - horizon * stride)
        rows = (episodes.offsets[long] + starts)[:, None] + stride * np.arange(-past, horizon + 1)
        blocks = np.stack(
            [
                episodes.actions(int(i))[start - past * stride : start + horizon * stride].reshape(
                    past + horizon, -1
                )
                for i, start in zip(long, starts, strict=True)
            ]
        )
        return cls(
            long, starts, rows, spec.statistics.normalise_actions(torch.from_numpy(blocks)), horizon
        )

    def imagined(self, model: WorldModel, context: np.ndarray) -> np.ndarray:
        """(W, K, D) latents of the first frames -> (W, H, D), predicted under the recorded
        blocks."""
        device, past = device_of(model), model.context - 1
        blocks = self.blocks.to(device)
        with torch.no_grad():
            ahead = model.rollout(
                torch.from_numpy(context).to(device), blocks[:, :past], blocks[:, None, past:]
            )
        return ahead[:, 0].float().cpu().numpy()


def _sample(
    episodes: Episodes, ids: Sequence[int], count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` rows of some episodes, in the order of the file, and the episode of each."""
    lengths = episodes.lengths[np.asarray(ids)]
    rows = np.concatenate(
        [episodes.offsets[i] + np.arange(n) for i, n in zip(ids, lengths, strict=True)]
    )
    chosen = np.sort(generator.permutation(len(rows))[:count])
    return rows[chosen], np.repeat(np.asarray(ids), lengths)[chosen]


def _seen(
    model: WorldModel,
    episodes: Episodes,
    rows: np.ndarray,
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, np.ndarray]:
    """(...) rows -> (..., h, h, 3) uint8 pixels and (..., D) float32 latents."""
    pixels = episodes.rows("pixels", rows.ravel())
    latents = []
    for number, first in enumerate(range(0, len(pixels), FRAMES_AT_ONCE), 1):
        part = torch.from_numpy(pixels[first : first + FRAMES_AT_ONCE]).permute(0, 3, 1, 2)[:, None]
        latents.append(encode(model, part)[:, 0].float().cpu().numpy())
        tick(number)
    return pixels.reshape(*rows.shape, *pixels.shape[1:]), np.concatenate(latents).reshape(
        *rows.shape, -1
    )


def _errors(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(..., h, h, 3) uint8 pictures, and others of a shape that broadcasts -> (...) mean squared
    error of pixels in [0, 1]."""
    flat = (
        pictures.reshape(-1, *pictures.shape[-3:]) for pictures in np.broadcast_arrays(truth, drawn)
    )
    errors = [
        np.square((a.astype(np.float32) - b) / 255).mean(dtype=np.float64)
        for a, b in zip(*flat, strict=True)
    ]
    return np.array(errors).reshape(truth.shape[:-3])


def _spread(scores: np.ndarray, count: int) -> np.ndarray:
    """Numbers of `count` entries at equal steps of rank, in the middle of equal parts, lowest score
    first."""
    count = min(count, len(scores))
    return np.argsort(scores, kind="stable")[
        ((np.arange(count) + 0.5) * len(scores) / count).astype(int)
    ]


def _shown(pictures: np.ndarray) -> np.ndarray:
    """Small enough to be stored: blocks of pixels averaged where there are more than
    `LARGEST_SHOWN_PX` to a side."""
    side = pictures.shape[-2]
    by = next(by for by in range(1, side + 1) if side // by <= LARGEST_SHOWN_PX)
    if by == 1:
        return pictures
    kept = side // by * by
    blocks = pictures[..., :kept, :kept, :].reshape(
        *pictures.shape[:-3], kept // by, by, kept // by, by, 3
    )
    return np.rint(blocks.mean(axis=(-4, -2))).astype(np.uint8)


def _milliseconds(act: Callable[[], object], times: int = 7) -> float:
    """Median wall time of an act."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        took.append(1e3 * (time.perf_counter() - began))
    return round(float(np.median(took)), 2)
