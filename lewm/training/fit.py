"""The one loop for small networks on frozen latents, and the heads that planning asks for.

The frames of some episodes are encoded once; after that the world model is not asked again, let
alone changed. Which pairs of them form the batch of update u is a pure function of (seed, u).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lewm import registry
from lewm.contracts import (
    Distance,
    Head,
    Hindsight,
    Progress,
    Report,
    Selecting,
    WorldModel,
    check_numbers,
    require,
    silent,
)
from lewm.data.episodes import Episodes
from lewm.devices import deterministic
from lewm.models.nn.frozen import device_of
from lewm.runs import checkpoints
from lewm.runs.heads import save_head
from lewm.stats import rank_correlation
from lewm.training.hindsight import MAX_FRAMES, Latents, encode_episodes

__all__ = ["FittingConfig", "descend", "fit", "fit_heads"]

HELD_OUT_SHARE = 0.2
"""Of the frames that are fitted to: at most how many of the held-out episodes are encoded, to
measure on."""

HELD_OUT_BATCHES = 16
"""Batches over which the held-out loss is a mean."""

TRAINING, MEASURING = 0, 1
"""Streams of pairs that share a seed."""


@dataclass(frozen=True)
class FittingConfig:
    """How heads are fitted.

    Attributes:
        updates: optimiser steps.
        batch_size: pairs of frames per update.
        learning_rate: peak, reached after `warmup` and followed by a cosine to nearly 0.
        warmup: share of the updates with growing learning rate.
        weight_decay, clip: of AdamW, and the largest norm of the gradient.
        reach: env steps of the most distant goals.
        max_frames: frames encoded of the episodes that are fitted to, see `encode_episodes`; it
            bounds time and memory.
        seed: of weights, pairs and, where there are too many, of the episodes.
    """

    updates: int = 2000
    batch_size: int = 512
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-3
    clip: float = 1.0
    reach: int = 100
    max_frames: int = MAX_FRAMES
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"updates": 1, "batch_size": 1, "reach": 1, "max_frames": 2},
            most={"batch_size": 10**7},
            below={"warmup": 1},
        )


def descend(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    config: FittingConfig,
    report: Report = silent,
) -> Tensor:
    """Minimise a loss: AdamW, a short warm-up, then a cosine to nearly 0; the network ends in
    evaluation mode.

    Args:
        loss: update, counted from 0 -> the scalar loss of its batch.
        config: updates, learning rate, warm-up, weight decay and clip are taken from it.
        report: called after each update ("fit").

    Returns:
        (updates,) losses.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    warmup = max(1, round(config.warmup * config.updates))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda done: min((done + 1) / warmup, (1 + math.cos(math.pi * done / config.updates)) / 2),
    )
    losses: list[Tensor] = []
    with deterministic(next(network.parameters()).device), torch.enable_grad():
        network.train()
        for update in range(config.updates):
            value = loss(update)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            optimiser.step()
            schedule.step()
            losses.append(value.detach())
            if update % 10 == 9:  # where the host waits for a number anyway
                _require_finite(update, losses[-1])
            note = f"loss {float(losses[-1]):.3g}" if update % 10 == 9 else ""
            report(Progress("fit", update + 1, config.updates, note))
    network.eval()
    return torch.stack(losses)


def _require_finite(update: int, loss: Tensor) -> None:
    if not bool(loss.isfinite()):
        raise ValueError(
            f"expected finite losses, got {float(loss)} by update {update + 1}. Lower the learning "
            "rate, or see whether all latents are finite."
        )


def fit(
    head: Head | Selecting,
    latents: Latents,
    heldout: Latents,
    config: FittingConfig = FittingConfig(),
    report: Report = silent,
) -> dict[str, float]:
    """Minimise a head's loss on hindsight batches, or let one that selects do so; it ends in
    evaluation mode.

    Args:
        head: an `nn.Module` that fulfils `contracts.Head`, on the device of the latents;
            batches hold as many blocks as its `horizon` says.
        latents: to fit to.
        heldout: of other episodes, to measure on.
        report: called after each update ("fit").

    Returns:
        `loss`, the mean over the last tenth of the updates; `heldout_loss`, and the same of what
        the head watches; `seconds`. Of one that selects the losses are means over all frames.

    Raises:
        ValueError: the loss is not finite, or this is no head.
    """
    if isinstance(head, Selecting):
        return _selected(head, latents, heldout)
    require(Head, head, "what is fitted")
    began = time.perf_counter()
    batches = _batches(latents, config, head.horizon, TRAINING, config.updates)
    losses = descend(
        cast(nn.Module, head), lambda _: head.loss(next(batches)).total, config, report
    )
    with torch.no_grad():
        measured = [
            head.loss(batch)
            for batch in _batches(heldout, config, head.horizon, MEASURING, HELD_OUT_BATCHES)
        ]
    found = {
        "loss": [losses[-max(1, config.updates // 10) :].mean()],
        "heldout_loss": [each.total for each in measured],
    }
    found |= {
        f"heldout_{name}": [each.watch[name] for each in measured] for name in measured[0].watch
    }
    metrics = {name: float(torch.stack(values).mean()) for name, values in found.items()}
    if not np.isfinite(list(metrics.values())).all():
        raise ValueError(
            f"expected finite losses, got {metrics}. Lower the learning rate, or see whether all "
            "latents are finite."
        )
    return {**metrics, "seconds": round(time.perf_counter() - began, 3)}


def fit_heads(
    run: Path,
    model: WorldModel,
    episodes: Episodes,
    fit_ids: Sequence[int],
    heldout_ids: Sequence[int],
    names: Sequence[str] | None = None,
    config: FittingConfig = FittingConfig(),
    report: Report = silent,
) -> dict[str, dict[str, float]]:
    """Fit heads to a run's world model, each from its own defaults, and store them in the run.

    Args:
        run: its folder.
        model: from it, in evaluation mode; it stays as it is.
        fit_ids: episodes to fit to; those that the model was trained on.
        heldout_ids: other episodes, to measure on.
        names: of the heads; None takes all there are.
        report: called as frames are encoded ("encode") and heads are fitted ("fit temporal").

    Returns:
        Per head what `fit` says of it, with `frames` and `episodes` that it was fitted to; and for
        one that knows distances the `rank_correlation` of its distance, and that of latent L2, with
        the steps between held-out frames.

    Raises:
        ValueError: an unknown head, episodes on both sides, too few of them, a model in training
            mode, or another process writes to the run.
    """
    with checkpoints.held(Path(run)):
        return _fit_heads(run, model, episodes, fit_ids, heldout_ids, names, config, report)


def _fit_heads(
    run: Path,
    model: WorldModel,
    episodes: Episodes,
    fit_ids: Sequence[int],
    heldout_ids: Sequence[int],
    names: Sequence[str] | None,
    config: FittingConfig,
    report: Report,
) -> dict[str, dict[str, float]]:
    configs = {name: registry.load("heads", name)() for name in names or registry.names("heads")}
    if shared := set(fit_ids) & set(heldout_ids):
        raise ValueError(
            "heads must be measured on episodes they were not fitted to, got "
            f"{sorted(shared)[:5]} on both sides."
        )
    if len(fit_ids) < 2 or not heldout_ids:
        raise ValueError(
            f"{episodes.path}: expected at least 2 episodes to fit heads to and 1 to measure on, "
            f"got {len(fit_ids)} and {len(heldout_ids)}. Collect more episodes, or hold fewer out."
        )
    latents = encode_episodes(model, episodes, fit_ids, config.max_frames, config.seed, report)
    heldout = encode_episodes(
        model, episodes, heldout_ids, max(2, int(HELD_OUT_SHARE * config.max_frames)), config.seed
    )
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

        def named(progress: Progress, stage: str = f"fit {name}") -> None:
            report(replace(progress, stage=stage))

        metrics = fit(head, latents, heldout, config, named)
        metrics |= {"frames": len(latents), "episodes": len(fit_ids)}
        if isinstance(head, Distance):
            metrics |= _agreement(head, _batches(heldout, config, 0, MEASURING, HELD_OUT_BATCHES))
        save_head(
            run, name, head, {"metrics": metrics, "fitting": asdict(config), "fitted_to": origin}
        )
        found[name] = metrics
    return found


def _selected(head: Selecting, latents: Latents, heldout: Latents) -> dict[str, float]:
    """Let a head select among the frames, and say how well that stands for others."""
    began = time.perf_counter()
    if latents.rows is None:
        raise ValueError(
            "expected latents that know their rows of an episode file, got none. Make them with "
            "`encode_episodes`."
        )
    if not bool(latents.latents.isfinite().all()):
        raise ValueError("expected finite latents, got NaN or infinity. See whether the model is.")
    head.select(latents.latents, latents.rows)
    cast(nn.Module, head).eval()
    losses = {
        name: float(head.loss_of(some.latents).mean())
        for name, some in (("loss", latents), ("heldout_loss", heldout))
    }
    return {**losses, "seconds": round(time.perf_counter() - began, 3)}


def _batches(
    latents: Latents, config: FittingConfig, horizon: int, stream: int, count: int
) -> Iterator[Hindsight]:
    for number in range(count):
        generator = np.random.default_rng((config.seed, stream, number))
        yield latents.hindsight(config.batch_size, config.reach, horizon, generator)


def _agreement(head: Distance, pairs: Iterator[Hindsight]) -> dict[str, float]:
    """Rank correlation of two distances between latents, the head's and the plain one, with the
    steps between them."""
    with torch.no_grad():
        rows = [
            (
                p.steps,
                head.distance(p.now, p.goal),
                torch.linalg.vector_norm(p.now - p.goal, dim=-1),
            )
            for p in pairs
        ]
    steps, learnt, plain = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
    found = {
        "rank_correlation": rank_correlation(learnt, steps),
        "l2_rank_correlation": rank_correlation(plain, steps),
    }
    # where nothing varies there is none
    return {name: value for name, value in found.items() if math.isfinite(value)}
