"""The neural parts that models are made of: ViT encoder, projector, action encoder, causal
AdaLN-zero predictor.

Sizes are arguments, shapes are in the docstrings, and every deviation from the defaults of PyTorch
is one of LeWorldModel's own choices (paper, sec. 3 and appendix; the published code where the text
is silent).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lewm.contracts import Trainable
from lewm.models.nn.mixers import State, matched_mlp_dim, recurrence


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (n, width) rows over the batch of *all* devices, on CPU as well as on
    GPU.

    With per-device statistics the loss would depend on how a batch is spread over devices.
    `torch.nn.SyncBatchNorm` mends that but refuses CPU, where the equality with one process can be
    tested by everybody.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or devices_together() == 1:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        total = _SumOverDevices.apply(torch.cat([x.sum(0), x.new_tensor([float(len(x))])]))
        count = total[-1].detach()
        mean = total[:-1] / count
        variance = _SumOverDevices.apply((x - mean).square().sum(0)) / count
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = (
                    self.momentum
                    if self.momentum is not None
                    else 1.0 / float(self.num_batches_tracked)
                )
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * count / (count - 1)  # as PyTorch stores it
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return ((x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(
            input.dtype
        )


class _SumOverDevices(torch.autograd.Function):
    """The sum of a tensor over all devices, differentiable: every device's loss depends on every
    device's summand."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:  # type: ignore[override]
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class Projector(nn.Sequential):
    """(n, in) -> (n, out): Linear, BatchNorm, GELU, Linear.

    The batch norm is what lets SIGReg work: the encoder's final LayerNorm fixes the norm of each
    sample, and without the batch norm the latents collapse.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, norm: bool = True) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden_dim),
            BatchNorm(hidden_dim) if norm else nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, out_dim),
        )


class MLP(nn.Sequential):
    """(..., width) -> (..., width): Linear, GELU, dropout, Linear, dropout."""

    def __init__(self, width: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(width, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, width),
            nn.Dropout(dropout),
        )


class Attention(nn.Module):
    """Multi-head self-attention, (n, tokens, width) -> (n, tokens, width).

    Args:
        head_dim: width of one head; heads * head_dim may differ from `width`, as it does in the
            predictor.
        bias: whether queries, keys and values have one. The output always has.
        causal: token i sees tokens 0..i.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        *,
        bias: bool,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Mix tokens; with `queries`, return only that many leading tokens and spend nothing on the
        others' outputs."""
        n, tokens, _ = x.shape
        wanted = tokens if queries is None else queries
        inner = self.out.in_features
        weights, biases = self.qkv.weight, self.qkv.bias
        dropout = self.dropout if self.training else 0.0
        # a token that is alone attends to itself: its value is the mixture
        if tokens == 1 and not dropout:
            mixed = F.linear(
                x, weights[2 * inner :], None if biases is None else biases[2 * inner :]
            )
        else:
            q = F.linear(x[:, :wanted], weights[:inner], None if biases is None else biases[:inner])
            k, v = F.linear(x, weights[inner:], None if biases is None else biases[inner:]).chunk(
                2, dim=-1
            )
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=self.causal, dropout_p=dropout
            )
            mixed = mixed.transpose(1, 2).reshape(n, wanted, inner)
        return F.dropout(self.out(mixed), self.dropout, self.training)


class EncoderBlock(nn.Module):
    """Pre-LayerNorm transformer block of the ViT."""

    def __init__(self, width: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.attention = Attention(width, heads, width // heads, bias=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)
        self.mlp = MLP(width, mlp_dim)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Update all tokens; with `queries`, only that many leading ones, which are returned
        alone."""
        x = x[:, :queries] + self.attention(self.norm1(x), queries)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer, (n, 3, h, w) normalised pixels -> (n, width), the CLS token after the
    final LayerNorm.

    Args:
        position: "learned" is the paper's embedding, drawn with std 0.02. "sincos" starts from 2-D
            sines and cosines of unit scale and learns on from there.
        overlap: each patch also sees half of its neighbours' pixels (a kernel twice as wide, the
            same stride).
        stem: "patch" is one convolution as wide as its stride. "conv" is several 3 x 3 convolutions
            of stride 2, with GELU between them, that reach the same grid: edges and corners are
            seen before they are mixed. Source: Xiao et al., "Early convolutions help transformers
            see better", 2021.

    Ours: both are for small models, which may otherwise learn where an object is *within* its patch
    rather than which patch it is in, a signal that is as predictable and as Gaussian, so the loss
    looks excellent while probes and planning fail. The embedding is what matters most; the overlap
    is a second guard (docs/log has the ablations).

    Raises:
        ValueError: the patch size does not divide the image size, is odd with overlap, or no power
            of 2 for a conv stem.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        position: str = "learned",
        overlap: bool = False,
        stem: str = "patch",
    ) -> None:
        super().__init__()
        if stem == "conv" and (patch_size & (patch_size - 1) or overlap):
            raise ValueError(
                "a conv stem needs a patch_size that is a power of 2 and no overlap, got "
                f"{patch_size}, {overlap}. Change one of them."
            )
        if image_size % patch_size:
            raise ValueError(
                f"patch_size must divide image_size, got {patch_size} and {image_size}. Change "
                "one of the two."
            )
        if overlap and patch_size % 2:
            raise ValueError(
                f"overlap needs an even patch_size, got {patch_size}. Change it, or switch "
                "overlap off."
            )
        side, margin = image_size // patch_size, patch_size // 2 if overlap else 0
        self.patches: nn.Module = (
            conv_stem(patch_size, width)
            if stem == "conv"
            else nn.Conv2d(3, width, patch_size + 2 * margin, stride=patch_size, padding=margin)
        )
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.apply(_init_truncated)
        if stem == "conv":
            self.patches.apply(_init_he)
        nn.init.trunc_normal_(self.cls, std=0.02)
        if position == "sincos":
            with torch.no_grad():
                self.position[0, 1:] = sincos_2d(side, width)
        else:
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)  # (n, P, width)
        x = torch.cat([self.cls.expand(len(patches), -1, -1), patches], dim=1) + self.position
        for block in self.blocks[:-1]:
            x = block(x)
        # of the last block only the CLS token is ever read
        return self.norm(self.blocks[-1](x, queries=1)[:, 0])


class InverseDynamics(nn.Module):
    """Tell from two latents `gap` blocks apart what was done between them.

    Args:
        latent_dim, block_dim, hidden_dim: D, A, and the width of its one hidden layer.
        gap: blocks.

    Source: PLDM's inverse-dynamics head (arXiv 2502.14819) for a gap of 1.
    """

    def __init__(self, latent_dim: int, block_dim: int, hidden_dim: int, gap: int = 1) -> None:
        super().__init__()
        self.gap = gap
        self.layers = nn.Sequential(
            nn.Linear(2 * latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, gap * block_dim)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(B, T, D), T > gap -> (B, T - gap, gap * A); entry t is what it takes to have been done
        from frame t to t + gap."""
        pairs = torch.cat([latents[:, : -self.gap], latents[:, self.gap :]], dim=-1)
        return self.layers(pairs)

    def loss(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error of the blocks that were executed.

        Args:
            latents: (B, T, D).
            actions: (B, T-1, A), block t leaves latent t.

        Raises:
            ValueError: the windows hold no two frames so far apart.
        """
        if latents.shape[1] <= self.gap:
            raise ValueError(
                f"expected windows longer than the gap of {self.gap} blocks that inverse dynamics "
                f"looks across, got {latents.shape[1]} frames. Lengthen the windows."
            )
        done = actions.unfold(1, self.gap, 1).movedim(-1, -2).flatten(-2)
        return F.mse_loss(self(latents).float(), done.float())


class ActionEncoder(nn.Module):
    """(..., A) normalised action blocks -> (..., width) conditioning vectors, one per frame."""

    def __init__(
        self, block_dim: int, width: int, bottleneck: int = 10, expansion: int = 4
    ) -> None:
        super().__init__()
        self.mix = nn.Linear(block_dim, bottleneck)  # the published Conv1d of kernel 1
        self.embed = nn.Sequential(
            nn.Linear(bottleneck, expansion * width), nn.SiLU(), nn.Linear(expansion * width, width)
        )

    def forward(self, actions: Tensor) -> Tensor:
        return self.embed(self.mix(actions))


class PredictorBlock(nn.Module):
    """Causal transformer block whose LayerNorms are modulated by the action (AdaLN-zero): it starts
    as the identity.

    Both branches begin with a second, affine LayerNorm after the modulated one, as in the published
    weights.

    Args:
        zero: whether it does; False leaves the modulation as PyTorch draws it, an ablation.
        mixer: "attention", or the recurrence that stands in its place, see `models.nn.mixers`. The
            MLP is then as wide as makes the block as large as with attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        mlp_dim: int,
        dropout: float,
        zero: bool = True,
        mixer: str = "attention",
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        if zero:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        self.norm_attention = nn.LayerNorm(width)
        if mixer == "attention":
            self.attention = Attention(
                width, heads, head_dim, bias=False, causal=True, dropout=dropout
            )
        else:
            self.mixer = recurrence(mixer, width, heads, head_dim, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, matched_mlp_dim(mixer, width, heads, head_dim, mlp_dim), dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(
            F.silu(condition)
        ).chunk(6, dim=-1)
        x = x + gate_a * self.attention(self.norm_attention(_modulate(x, shift_a, scale_a)))
        return x + gate_m * self.mlp(self.norm_mlp(_modulate(x, shift_m, scale_m)))

    def advance(
        self, x: Tensor, condition: Tensor, state: State | None, write: bool
    ) -> tuple[Tensor, State]:
        """`forward` from the state that earlier tokens left, of a block with a recurrence; and the
        state after it."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(
            F.silu(condition)
        ).chunk(6, dim=-1)
        y = self.norm_attention(_modulate(x, shift_a, scale_a))
        mixed, state = self.mixer(y, state, write)
        x = x + gate_a * mixed
        return x + gate_m * self.mlp(self.norm_mlp(_modulate(x, shift_m, scale_m))), state


class Predictor(nn.Module):
    """Next-latent transformer: (n, K, D) latents and (n, K, width) conditions -> (n, K, width).

    Token k sees latents and actions 0..k and its output belongs to the frame after k. Shorter
    contexts use the first position embeddings, so an episode may begin with a single frame.

    Args:
        mixer: of its blocks. Ours: with a recurrence there are no position embeddings. It knows the
            order of what it saw, and goes on past the longest window that it was trained on.

    Attributes:
        recurrent: the mixer is a recurrence, and `advance` may be asked.
        frozen_memory: while planning, a memory keeps what it read of frames and nothing predicted
            is written to it. Only Titans have such a memory.
    """

    def __init__(
        self,
        latent_dim: int,
        context: int,
        width: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp_dim: int,
        dropout: float,
        zero: bool = True,
        mixer: str = "attention",
    ) -> None:
        super().__init__()
        self.recurrent, self.frozen_memory = mixer != "attention", False
        if not self.recurrent:
            self.position = nn.Parameter(torch.randn(1, context, latent_dim))
        self.inward = nn.Linear(latent_dim, width) if latent_dim != width else nn.Identity()
        self.blocks = nn.ModuleList(
            PredictorBlock(width, heads, head_dim, mlp_dim, dropout, zero, mixer)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, latents: Tensor, conditions: Tensor) -> Tensor:
        if self.recurrent:
            return self.advance(latents, conditions)[0]
        x = self.inward(latents + self.position[:, : latents.shape[1]])
        for block in self.blocks:
            x = block(x, conditions)
        return self.norm(x)

    def advance(
        self,
        latents: Tensor,
        conditions: Tensor,
        states: Sequence[State | None] | None = None,
        write: bool = True,
    ) -> tuple[Tensor, list[State]]:
        """Take any number of tokens from the states that those before left; of a recurrent one.

        Args:
            latents, conditions: (n, tokens, D) and (n, tokens, width).
            states: of all layers, None before the first token.
            write: False leaves memories as they are, see `frozen_memory`.

        Returns:
            (n, tokens, width), and the states after the last token.
        """
        x, after = self.inward(latents), []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x, left = cast(PredictorBlock, block).advance(x, conditions, state, write)
            after.append(left)
        return self.norm(x), after


def conv_stem(stride: int, width: int) -> nn.Sequential:
    """(n, 3, h, w) -> (n, width, h / stride, w / stride): 3 x 3 convolutions that halve the
    picture, double the channels."""
    halvings = stride.bit_length() - 1
    layers: list[nn.Module] = []
    channels = 3
    for left in reversed(range(halvings)):
        layers += [nn.Conv2d(channels, width >> left, 3, stride=2, padding=1), nn.GELU()]
        channels = width >> left
    return nn.Sequential(*layers[:-1])


def sincos_2d(side: int, width: int, temperature: float = 100.0) -> Tensor:
    """(side * side, width) sines and cosines of row and column, unit amplitude, row-major.

    Wavelengths are geometric from 2 pi to 2 pi * `temperature` patches. Ours: the usual 10^4 is for
    long sequences; on a grid of 8 x 8 it would leave half of the components constant.
    """
    if width % 4:
        raise ValueError(
            f"a sin-cos position embedding needs a width divisible by 4, got {width}. Change the "
            "encoder's width."
        )
    frequency = temperature ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency  # (side, width / 4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)


def devices_together() -> int:
    """How many devices share a batch: 1, unless processes train together."""
    alone = not (dist.is_available() and dist.is_initialized())
    return 1 if alone else dist.get_world_size()


def own_share(rows: Tensor, count: int) -> Tensor:
    """(devices * count, ...) drawn for a whole batch -> (count, ...) of this device's windows."""
    first = 0 if devices_together() == 1 else dist.get_rank() * count
    return rows[first : first + count]


def mean_over_devices(x: Tensor) -> Tensor:
    """The mean of a detached tensor over all devices, each of which must ask."""
    if devices_together() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / devices_together()


def rows_of_all_devices(x: Tensor) -> Tensor:
    """(n, ...) of one device -> (N, ...) of all, in the order of their ranks; differentiable. Each
    device must ask, and `n` may differ.

    It is for losses that look at a batch as a whole. Each device then has the same loss, and the
    mean of their gradients, which training takes, is that of one device with the whole batch.
    """
    if devices_together() == 1:
        return x
    counts = torch.zeros(devices_together(), dtype=torch.long, device=x.device)
    counts[dist.get_rank()] = len(x)
    dist.all_reduce(counts)
    rows = counts.tolist()
    before = sum(rows[: dist.get_rank()])
    padded = torch.cat(
        [
            x.new_zeros(before, *x.shape[1:]),
            x,
            x.new_zeros(sum(rows) - before - len(x), *x.shape[1:]),
        ]
    )
    return cast(Tensor, _SumOverDevices.apply(padded))


@contextmanager
def recalibrating(model: Trainable) -> Iterator[None]:
    """Re-estimate BatchNorm statistics from the batches that go through `model` inside; it ends in
    evaluation mode.

    Everything is in evaluation mode (no dropout) but the batch norms, which forget what they have
    seen and take the plain average. With the usual running average, statistics lag behind a short
    schedule by orders of magnitude in evaluation error.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's name for a cumulative average
        norm.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        model.eval()


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _init_he(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _init_truncated(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
