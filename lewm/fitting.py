"""The one loop for small networks on frozen latents, and the hindsight data that they are fitted to.

The frames of some episodes are encoded once; after that the world model is not asked again, let alone changed. In hindsight
every later frame of an episode was a goal that was reached, so each pair of frames says how long a way took and what was done
on it. Which pairs form the batch of update u is a pure function of (seed, u).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lewm import checkpoints, registry
from lewm.contracts import Hindsight, WorldModel
from lewm.data import Episodes, check_fits
from lewm.devices import deterministic
from lewm.latents import FRAMES_AT_ONCE, device_of, encode, require_evaluation_mode
from lewm.planning import PlanningConfig
from lewm.stats import pearson

__all__ = ["Fitting", "Latents", "attach", "encode_episodes", "fit", "fit_heads", "heads_of", "rank_correlation"]

HELD_OUT_SHARE = 0.2
"""Of the frames that are fitted to: at most how many of the held-out episodes are encoded, to measure on."""

HELD_OUT_BATCHES = 16
"""Batches over which the held-out loss is a mean."""

TRAINING, MEASURING = 0, 1
"""Streams of pairs that share a seed."""

Progress = Callable[[str, int, int, str], None]
"""Called with the stage ("encode" or a head's name), how much of it is done, how much there is, and a line of numbers."""


@dataclass(frozen=True)
class Fitting:
    """How heads are fitted.

    Attributes:
        updates: optimiser steps.
        batch_size: pairs of frames per update.
        learning_rate: peak, reached after `warmup` and followed by a cosine to nearly 0.
        warmup: share of the updates with growing learning rate.
        weight_decay, clip: of AdamW, and the largest norm of the gradient.
        reach: env steps of the most distant goals.
        max_frames: frames encoded of the episodes that are fitted to, see `encode_episodes`; it bounds time and memory.
        seed: of weights, pairs and, where there are too many, of the episodes.
    """

    updates: int = 2000
    batch_size: int = 512
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-3
    clip: float = 1.0
    reach: int = 100
    max_frames: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"updates": 1, "batch_size": 1, "learning_rate": 0, "warmup": 0, "weight_decay": 0, "clip": 0, "reach": 1}
        for name, bound in {**least, "max_frames": 2, "seed": 0}.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}.")
        if not self.warmup < 1:
            raise ValueError(f"warmup is a share and must be below 1, got {self.warmup}.")


@dataclass(frozen=True)
class Latents:
    """Frames of some episodes as a frozen model sees them, end to end, and the block that was executed from each.

    Attributes:
        latents: (F, D).
        blocks: (F, A) normalised actions of the `frameskip` env steps that follow each frame; 0 where the episode ends before.
        whole: (F,) bool, whether the episode holds that block.
        following: (F,) frames of the same episode that come after each.
        gap: env steps from one frame to the next.
        frameskip: env steps of a block, a multiple of `gap`.
    """

    latents: Tensor
    blocks: Tensor
    whole: Tensor
    following: Tensor
    gap: int
    frameskip: int

    def __len__(self) -> int:
        """F."""
        return len(self.latents)

    def hindsight(self, count: int, reach: int, horizon: int, generator: np.random.Generator) -> Hindsight:
        """Draw pairs of frames of which the later one was the goal.

        `now` is uniform over all frames. The goal is n frames later, 1 + n being log-uniform and n rounded, up to `reach` env
        steps; where the episode ends before, its last frame is the goal. So near goals, on which the last steps depend, are as
        frequent as far ones, and some (9% at reach 100 and gap 1) are `now` itself.

        Args:
            count: B.
            horizon: H, blocks to hand out; block h begins h * `frameskip` env steps after `now`.
        """
        device, last = self.latents.device, len(self) - 1
        now = torch.from_numpy(generator.integers(len(self), size=count)).to(device)
        spread = torch.from_numpy(generator.random(count, np.float32)).to(device)
        drawn = (spread * math.log1p(max(1, reach // self.gap))).expm1().round().long()
        offset = drawn.minimum(self.following[now])
        steps = offset * self.gap
        block = torch.arange(horizon, device=device)
        ahead = block * (self.frameskip // self.gap)  # in frames
        frame = (now[:, None] + ahead).clamp(max=last)
        known = (ahead <= self.following[now][:, None]) & self.whole[frame] & (block * self.frameskip < steps[:, None])
        return Hindsight(
            now=self.latents[now],
            goal=self.latents[now + offset],
            steps=steps.float(),
            blocks=self.blocks[frame] * known[..., None],
            known=known,
        )


def encode_episodes(
    model: WorldModel,
    episodes: Episodes,
    ids: Sequence[int],
    max_frames: int = Fitting.max_frames,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Latents:
    """Encode frames of some episodes with a frozen model, once and for all.

    Every row is taken where there are at most `max_frames`. Of more rows those that are one action block apart are taken, and
    where there are still too many, whole episodes, drawn at random, until the next would not fit.

    Args:
        model: in evaluation mode; it stays as it is. The latents stay on its device.
        ids: of the episodes.
        seed: of that drawing.

    Raises:
        ValueError: the model is in training mode, no episode holds two frames, or the file does not fit the model.

    Cost: F frames through the encoder; memory of F x (D + A) numbers.
    """
    require_evaluation_mode(model)
    spec = model.spec
    check_fits(episodes, spec.image_size, spec.statistics.action_dim)
    if spec.frameskip % episodes.every:
        raise ValueError(
            f"{episodes.path}: expected rows that a block of {spec.frameskip} env steps is made of, got one per "
            f"{episodes.every}. Use the episodes that the run was trained on."
        )
    stride = spec.frameskip // episodes.every  # rows of a block
    apart, chosen = _thinned(episodes, ids, stride, max_frames, seed)
    device = device_of(model)
    parts: dict[str, list[np.ndarray]] = {"rows": [], "blocks": [], "whole": [], "following": []}
    for i in chosen:
        actions = episodes.actions(i)
        last = len(actions) - 1  # a row from which no action is taken
        step = np.arange(0, len(actions), apart)
        block = step[:, None] + np.arange(stride)
        whole = block[:, -1] < last
        parts["rows"].append(episodes.offsets[i] + step)
        parts["blocks"].append(np.where(whole[:, None], actions[np.minimum(block, last)].reshape(len(step), -1), np.nan))
        parts["whole"].append(whole)
        parts["following"].append(np.arange(len(step))[::-1])
    rows, blocks, whole, following = (np.concatenate(part) for part in parts.values())
    latents = []
    for part in np.split(rows, range(FRAMES_AT_ONCE, len(rows), FRAMES_AT_ONCE)):  # so that pixels are never all in memory
        pixels = torch.from_numpy(episodes.rows("pixels", part)).permute(0, 3, 1, 2)[:, None]
        latents.append(encode(model, pixels)[:, 0].float())
        progress("encode", sum(map(len, latents)), len(rows), "")
    return Latents(
        latents=torch.cat(latents),
        blocks=spec.statistics.normalise_actions(torch.from_numpy(blocks)).to(device),  # NaN becomes 0
        whole=torch.from_numpy(whole).to(device),
        following=torch.from_numpy(following).to(device),
        gap=apart * episodes.every,
        frameskip=spec.frameskip,
    )


def fit(
    head: Any,
    latents: Latents,
    heldout: Latents,
    config: Fitting = Fitting(),
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> dict[str, float]:
    """Minimise a head's loss on hindsight batches; it ends in evaluation mode.

    Args:
        head: an `nn.Module` that fulfils `contracts.Head`, on the device of the latents. If it has a `horizon`, batches hold
            that many blocks, else none.
        latents: to fit to.
        heldout: of other episodes, to measure on.
        progress: called after each update with (updates done, updates, numbers).

    Returns:
        `loss`, the mean over the last tenth of the updates; `heldout_loss`, and the same of what the head watches; `seconds`.

    Raises:
        ValueError: the loss is not finite.
    """
    horizon, began = int(getattr(head, "horizon", 0)), time.perf_counter()
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    warmup = max(1, round(config.warmup * config.updates))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda done: min((done + 1) / warmup, (1 + math.cos(math.pi * done / config.updates)) / 2)
    )
    losses: list[Tensor] = []
    with deterministic(latents.latents.device), torch.enable_grad():
        head.train()
        for update, batch in enumerate(_batches(latents, config, horizon, TRAINING, config.updates), 1):
            loss = head.loss(batch).total
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), config.clip)
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
            progress(update, config.updates, f"loss {float(losses[-1]):.3g}" if update % 10 == 0 else "")
        head.eval()
    with torch.no_grad():
        measured = [head.loss(batch) for batch in _batches(heldout, config, horizon, MEASURING, HELD_OUT_BATCHES)]
    found = {"loss": losses[-max(1, config.updates // 10) :], "heldout_loss": [each.total for each in measured]}
    found |= {f"heldout_{name}": [each.watch[name] for each in measured] for name in measured[0].watch}
    metrics = {name: float(torch.stack(values).mean()) for name, values in found.items()}
    if not np.isfinite(list(metrics.values())).all():
        raise ValueError(
            f"expected finite losses, got {metrics}. Lower the learning rate, or see whether all latents are finite."
        )
    return {**metrics, "seconds": round(time.perf_counter() - began, 3)}


def fit_heads(
    run: Path,
    model: WorldModel,
    episodes: Episodes,
    fit_ids: Sequence[int],
    heldout_ids: Sequence[int],
    names: Sequence[str] | None = None,
    config: Fitting = Fitting(),
    progress: Progress = lambda *_: None,
) -> dict[str, dict[str, float]]:
    """Fit heads to a run's world model, each from its own defaults, and store them in the run.

    Args:
        run: its folder.
        model: from it, in evaluation mode; it stays as it is.
        fit_ids: episodes to fit to; those that the model was trained on.
        heldout_ids: other episodes, to measure on.
        names: of the heads; None takes all there are.

    Returns:
        Per head what `fit` says of it, with `frames` and `episodes` that it was fitted to; and for one that knows distances the
        `rank_correlation` of its distance, and that of latent L2, with the steps between held-out frames.

    Raises:
        ValueError: an unknown head, episodes on both sides, too few of them, or a model in training mode.
    """
    configs = {name: registry.load("heads", name)() for name in names or registry.names("heads")}
    if shared := set(fit_ids) & set(heldout_ids):
        raise ValueError(f"heads must be measured on episodes they were not fitted to, got {sorted(shared)[:5]} on both sides.")
    if len(fit_ids) < 2 or not heldout_ids:
        raise ValueError(
            f"{episodes.path}: expected at least 2 episodes to fit heads to and 1 to measure on, got {len(fit_ids)} and "
            f"{len(heldout_ids)}. Collect more episodes, or hold fewer out."
        )
    latents = encode_episodes(model, episodes, fit_ids, config.max_frames, config.seed, progress)
    heldout = encode_episodes(model, episodes, heldout_ids, max(2, int(HELD_OUT_SHARE * config.max_frames)), config.seed)
    origin = {
        "data_path": str(Path(episodes.path).resolve()),
        "data": {
            "episodes": len(episodes.lengths),
            "steps": int(episodes.lengths.sum()),
            "provenance": asdict(episodes.provenance),
        },
        "split": {"train": sorted(int(i) for i in fit_ids)},
    }
    found: dict[str, dict[str, float]] = {}
    for name, head_config in configs.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            head = head_config.build(model.latent_dim, model.spec.block_dim)
        head.to(device_of(model))
        metrics = fit(head, latents, heldout, config, lambda *done, name=name: progress(name, *done))
        metrics |= {"frames": len(latents), "episodes": len(fit_ids)}
        if hasattr(head, "distance"):
            metrics |= _agreement(head, _batches(heldout, config, 0, MEASURING, HELD_OUT_BATCHES))
        checkpoints.save_head(run, name, head, {"metrics": metrics, "fitting": asdict(config), "fitted_to": origin})
        found[name] = metrics
    return found


def _thinned(episodes: Episodes, ids: Sequence[int], stride: int, max_frames: int, seed: int) -> tuple[int, list[int]]:
    """How many rows apart the frames are, and of which episodes, so that they are at most `max_frames`."""
    lengths = {int(i): int(episodes.lengths[i]) for i in ids}
    apart = 1 if sum(lengths.values()) <= max_frames else stride
    chosen: list[int] = []
    total = 0
    for i in np.random.default_rng(seed).permutation(list(lengths)).tolist():
        total += -(-lengths[i] // apart)
        if chosen and total > max_frames:
            break
        chosen.append(i)
    if all(lengths[i] <= apart for i in chosen):
        raise ValueError(
            f"{episodes.path}: expected an episode of {apart + 1} rows or more to learn ways from, got {len(chosen)} "
            f"episodes of at most {max((lengths[i] for i in chosen), default=0)}. Give more or longer episodes."
        )
    return apart, sorted(chosen)


def heads_of(config: PlanningConfig) -> set[str]:
    """Names of the heads that this way to plan asks for and does not have."""
    return {head for part in _parts(config) for name, head in getattr(part, "heads", {}).items() if getattr(part, name) is None}


def attach(config: PlanningConfig, heads: Mapping[str, nn.Module]) -> PlanningConfig:
    """Give an objective and a solver, and the search inside of that, the heads that they name and do not have yet.

    What is missing in `heads` stays None: whoever uses it then says which command makes it.
    """
    return replace(config, objective=_attached(config.objective, heads), solver=_attached(config.solver, heads))


def _parts(config: PlanningConfig) -> Iterator[Any]:
    """The objective, the solver, and the searches inside of that."""
    yield config.objective
    part: Any = config.solver
    while part is not None:
        yield part
        part = getattr(part, "search", None)


def _attached(part: Any, heads: Mapping[str, nn.Module]) -> Any:
    named = getattr(part, "heads", {})
    changes: dict[str, Any] = {
        name: heads[head] for name, head in named.items() if getattr(part, name) is None and head in heads
    }
    if (search := getattr(part, "search", None)) is not None:
        changes["search"] = _attached(search, heads)
    return replace(part, **changes) if changes else part


def _batches(latents: Latents, config: Fitting, horizon: int, stream: int, count: int) -> Iterator[Hindsight]:
    for number in range(count):
        generator = np.random.default_rng((config.seed, stream, number))
        yield latents.hindsight(config.batch_size, config.reach, horizon, generator)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two (F,) arrays: Pearson's of their ranks, equal values sharing their mean rank.

    A search only ever compares costs, so of a cost its ranks are what matters. NaN where one of the arrays is constant.
    """
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _agreement(head: Any, pairs: Iterator[Hindsight]) -> dict[str, float]:
    """Rank correlation of two distances between latents, the head's and the plain one, with the steps between them."""
    with torch.no_grad():
        rows = [(p.steps, head.distance(p.now, p.goal), torch.linalg.vector_norm(p.now - p.goal, dim=-1)) for p in pairs]
    steps, learnt, plain = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
    return {"rank_correlation": rank_correlation(learnt, steps), "l2_rank_correlation": rank_correlation(plain, steps)}
