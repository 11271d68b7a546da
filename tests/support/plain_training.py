"""A training as its definition reads: the twin of `lewm.train`, on one device and without
checkpoints. Nothing of `training/` is used here, and of the model its layers alone."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from lewm.contracts import DataSpec
from lewm.data.episodes import Episodes
from lewm.data.readers import open_windows
from lewm.data.split import split, statistics
from lewm.models.nn.layers import BatchNorm
from lewm.models.nn.sigreg import sigreg

DIRECTIONS, DROPOUT = 0, 1
"""Streams of random numbers that share a seed; DROPOUT is that of the first device."""


def seed_of(seed, update, stream):
    words = np.random.SeedSequence([seed, update, stream]).generate_state(1, np.uint64)
    return int(words[0]) // 2


def rates(peak, warmup, total):
    """The learning rate of each update: `warmup` updates that grow evenly to the peak, then half a
    cosine that would be 0 at update `total`."""
    growing = [peak * (k + 1) / warmup for k in range(warmup)]
    falling = total - warmup
    return growing + [peak * 0.5 * (1 + math.cos(math.pi * k / falling)) for k in range(falling)]


def losses_of(model, pixels, actions, generator):
    """(total, prediction error, SIGReg) of a batch, window by window of K latents."""
    c, K = model.config, model.config.context
    latents = model.encode(pixels)
    firsts = range(latents.shape[1] - K)
    seen, acted, came = (
        torch.stack([of[:, t + shift : t + shift + K] for t in firsts], dim=1).flatten(0, 1)
        for of, shift in ((latents, 0), (actions, 0), (latents, 1))
    )
    guessed = model.predict(seen, acted)
    error = F.mse_loss(guessed, came.detach() if c.stop_gradient else came)
    gaussian = torch.randn(c.latent_dim, c.sigreg_slices, generator=generator)
    sample = latents.reshape(-1, 1, c.latent_dim) if c.sigreg_pooled else latents
    apart = sigreg(sample, F.normalize(gaussian, dim=0), c.sigreg_knots)
    return error + c.sigreg_weight * apart, error, apart


def plain_training(model_config, config, data, schedule):
    """Train with a learning rate per update.

    Returns:
        The model in evaluation mode, and a dictionary per update of what is logged.
    """
    with Episodes.open(data) as episodes:
        drawn = config.seed if config.holdout_seed is None else config.holdout_seed
        fit = split(len(episodes), config.holdout, drawn).train
        known = statistics(episodes, fit, seed=config.seed)
        windows = open_windows(
            episodes,
            fit,
            config.window,
            config.frameskip,
            known,
            batch_size=config.batch_size,
            seed=config.seed,
            mode="resident",
        )
        torch.manual_seed(config.seed)
        model = model_config.build(DataSpec(episodes.image_size, config.frameskip, known))
        parameters = list(model.parameters())
        first = [torch.zeros_like(p) for p in parameters]
        second = [torch.zeros_like(p) for p in parameters]
        told = []
        for update, rate in enumerate(schedule):
            model.train()
            batch = windows.batch(update)
            torch.manual_seed(seed_of(config.seed, update, DROPOUT))
            generator = torch.Generator().manual_seed(seed_of(config.seed, update, DIRECTIONS))
            total, error, apart = losses_of(model, batch.pixels, batch.actions, generator)
            slopes = torch.autograd.grad(total, parameters, allow_unused=True)
            norm = torch.stack([s.norm() for s in slopes if s is not None]).norm()
            share = (config.clip / (norm + 1e-6)).clamp(max=1.0)
            with torch.no_grad():
                for p, s, m, v in zip(parameters, slopes, first, second):
                    if s is not None:
                        adamw(p, s * share, m, v, update + 1, rate, config.weight_decay)
            told.append(
                {
                    "loss": float(total.detach()),
                    "prediction": float(error.detach()),
                    "sigreg": float(apart.detach()),
                    "gradient_norm": float(norm),
                    "learning_rate": rate,
                }
            )
        settle(model, [windows.batch(k) for k in range(config.recalibration)])
    return model, told


def adamw(p, slope, m, v, count, rate, decay, betas=(0.9, 0.999), eps=1e-8):
    """One step, in place."""
    p.mul_(1 - rate * decay)
    m.lerp_(slope, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(slope, slope, value=1 - betas[1])
    spread = (v.sqrt() / math.sqrt(1 - betas[1] ** count)).add_(eps)
    p.addcdiv_(m, spread, value=-rate / (1 - betas[0] ** count))


def settle(model, batches):
    """Batch-norm statistics: the plain average of those of each batch, without dropout."""
    model.eval()
    norms = [layer for layer in model.modules() if isinstance(layer, BatchNorm)]
    seen = {norm: [] for norm in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda layer, x: seen[layer].append(x[0].detach()))
        for norm in norms
    ]
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for batch in batches:
            losses_of(model, batch.pixels, batch.actions, torch.Generator().manual_seed(0))
    for hook in hooks:
        hook.remove()
    for norm, inputs in seen.items():
        norm.running_mean.copy_(torch.stack([x.mean(dim=0) for x in inputs]).mean(dim=0))
        norm.running_var.copy_(torch.stack([x.var(dim=0) for x in inputs]).mean(dim=0))
    model.eval()
