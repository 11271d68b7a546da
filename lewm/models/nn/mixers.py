"""What may stand in the place of attention in the predictor: recurrences, which look back over
states of fixed size and not over a window.

Mamba: a selective state space (Gu and Dao, arXiv 2312.00752), per channel c of d_i = 2 width:

    (x, g) = W_in u,  x = SiLU(depthwise causal conv_4(x)),  (delta_r, B, C) = W_x x
    delta  = softplus(W_delta delta_r + b)
    h_t    = exp(delta_t A) h_{t-1} + delta_t x_t B_t,  A = -exp(A_log)
    y_t    = C_t h_t + D x_t,  out = W_out(y SiLU(g))

Titans: a linear memory that is trained while it reads (Behrouz et al., arXiv 2501.00663), beside
attention over the last few tokens (their "memory as a gate"), per head:

    S_t = eta_t S_{t-1} - theta_t (M_{t-1} k_t - v_t) k_t^T,  M_t = (1 - alpha_t) M_{t-1} + S_t
    out = W_out(attention_t * sigmoid(w M_t q_t + b)),  |k| = |q| = 1

Both are plain loops over time: windows are short. A `state` holds all that the past has left, so
that a step costs the same whenever it is taken. Nothing is written in place: gradients go through
every step, and through what Titans learn while they read.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.registry import choose

__all__ = ["MIXERS", "Mamba", "Recurrence", "Titans", "matched_mlp_dim", "recurrence"]

MIXERS = ("attention", "mamba", "titans")

LANES = 16
"""A CPU takes as many numbers at once, and what is left over with another last digit. Nothing is
left over where rows are multiples of this: what shares a batch changes nothing."""

State = tuple[Tensor, ...]
"""What the past has left of one layer: tensors whose first axis are the rows."""


class Recurrence(nn.Module, ABC):
    """Mix tokens in time, (n, tokens, width) -> the same shape; token i sees tokens 0..i and what
    the state holds of those before."""

    undecayed: tuple[str, ...] = ()
    """Names of its parameters that weight decay would pull to where they do not begin."""

    flops: int
    """Per token, of the multiplications and additions that are no matrix product."""

    @abstractmethod
    def forward(
        self, x: Tensor, state: State | None = None, write: bool = True
    ) -> tuple[Tensor, State]:
        """Go on from a state.

        Args:
            x: (n, tokens, width).
            state: what an earlier call returned, rows as of `x`; None begins.
            write: False reads a memory and leaves it as it is, where a mixer has one.

        Returns:
            (n, tokens, width), and the state after the last token: tensors of n rows.
        """


class Mamba(Recurrence):
    """A selective state space.

    Args:
        width: of the tokens; it works at twice that.
        states: N, numbers that each channel keeps.
        kernel: tokens that the convolution sees.
        dropout: of the output.

    Source: Mamba-1's sizes and beginnings: delta log-uniform in [0.001, 0.1], A = -(1..N), D = 1;
    no weight decay on A and D.
    """

    undecayed = ("A_log", "D")

    def __init__(self, width: int, states: int = 16, kernel: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        inner, self.rank = 2 * width, math.ceil(width / 16)
        self.states, self.kernel, self.dropout = states, kernel, dropout
        self.inward = nn.Linear(width, 2 * inner, bias=False)
        # of one channel each; the newest token's is the last
        self.conv_taps = nn.Parameter(torch.empty(kernel, inner).uniform_(-1, 1) * kernel**-0.5)
        self.conv_bias = nn.Parameter(torch.empty(inner).uniform_(-1, 1) * kernel**-0.5)
        self.select = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.delta = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width, bias=False)
        self.flops = inner * (7 * states + 2 * kernel)
        begin, end = math.log(1e-3), math.log(1e-1)
        delta = (begin + (end - begin) * torch.rand(inner)).exp()
        with torch.no_grad():
            nn.init.uniform_(self.delta.weight, -(self.rank**-0.5), self.rank**-0.5)
            self.delta.bias.copy_(delta + (-torch.expm1(-delta)).log())  # softplus undone

    def forward(
        self, x: Tensor, state: State | None = None, write: bool = True
    ) -> tuple[Tensor, State]:
        """As of `Recurrence`; the state is (n, kernel - 1, d_i) inputs of the convolution and
        (n, d_i, N)."""
        signal, gate = self.inward(x).chunk(2, dim=-1)
        if state is None:
            before = signal.new_zeros(len(x), self.kernel - 1, signal.shape[-1])
            h = signal.new_zeros(*before.shape[::2], self.states)
        else:
            before, h = state
        seen = torch.cat([before, signal], dim=1)
        mixed = self.conv_bias
        for i, tap in enumerate(self.conv_taps):
            mixed = mixed + tap * seen[:, i : i + x.shape[1]]
        signal = F.silu(mixed)
        low, B, C = self.select(signal).split([self.rank, self.states, self.states], dim=-1)
        delta = F.softplus(self.delta(low))
        A = -self.A_log.exp()
        outputs = []
        for t in range(x.shape[1]):
            keep = (delta[:, t, :, None] * A).exp()
            h = keep * h + (delta[:, t] * signal[:, t])[..., None] * B[:, t, None]
            outputs.append((h * C[:, t, None]).sum(-1))
        y = torch.stack(outputs, dim=1) + self.D * signal
        y = F.dropout(self.out(y * F.silu(gate)), self.dropout, self.training)
        return y, (seen[:, x.shape[1] :], h)


class Titans(Recurrence):
    """A linear memory trained at test time, which gates attention over a short window.

    Ours: no convolutions behind queries, keys and values; the window sees how far back a token is
    by a learned bias per head and distance, so it is the same at any time.

    Args:
        heads, head_dim: of attention and of the memory alike.
        window: tokens that attention sees, the newest among them.
        dropout: of the shares of attention, and of the output.

    Source: Titans' memory as a gate, with a matrix for a memory. theta is at most 1 and keys have
    unit length, so a step towards a value never goes beyond it. Beginnings are ours: alpha 0.05,
    eta and theta 0.5, and a small learned M_0.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, window: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.window, self.dropout = heads, window, dropout
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.distance = nn.Parameter(torch.zeros(heads, window))
        self.memory_qkv = nn.Linear(width, 3 * inner, bias=False)
        self.gates = nn.Linear(width, 3 * heads)
        self.first = nn.Parameter(0.02 * torch.randn(heads, head_dim, head_dim))  # M_0
        self.read_weight = nn.Parameter(torch.ones(inner))
        self.read_bias = nn.Parameter(torch.zeros(inner))
        self.out = nn.Linear(inner, width)
        self.flops = inner * (9 * head_dim + 4 * window)
        with torch.no_grad():
            self.gates.weight.zero_()
            starts = torch.tensor([0.05, 0.5, 0.5]).logit()  # alpha, eta, theta
            self.gates.bias.copy_(starts.repeat_interleave(heads))

    def forward(
        self, x: Tensor, state: State | None = None, write: bool = True
    ) -> tuple[Tensor, State]:
        """As of `Recurrence`; the state is M and S, (n, heads, d_v, d_k) each, and keys and values
        of the last tokens, (n, at most window - 1, heads, head_dim) each."""
        n, tokens, _ = x.shape
        q, k, v = self._by_head(self.qkv(x))
        if state is None:
            M = self.first.expand(n, -1, -1, -1)
            S = torch.zeros_like(M)
        else:
            M, S, keys, values = state
            k, v = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
        attended = self._attend(q, k, v)

        wanted, key, value = self._by_head(self.memory_qkv(x))
        wanted, key = F.normalize(wanted, dim=-1), F.normalize(key, dim=-1)
        # once per row of M, for the reason of LANES
        gates = self.gates(x)[..., None].expand(-1, -1, -1, value.shape[-1]).contiguous()
        alpha, eta, theta = gates.sigmoid()[..., None].chunk(3, dim=2)
        reads = []
        for t in range(tokens):
            if write:
                wrong = _apply(M, key[:, t]) - value[:, t]
                S = eta[:, t] * S - theta[:, t] * wrong[..., None] * key[:, t, :, None]
                M = (1 - alpha[:, t]) * M + S
            reads.append(_apply(M, wanted[:, t]))
        read = torch.stack(reads, dim=1).flatten(2)
        gate = torch.sigmoid(self.read_weight * read + self.read_bias)
        y = F.dropout(self.out(attended * gate), self.dropout, self.training)
        kept = max(0, k.shape[1] - (self.window - 1))
        return y, (M, S, k[:, kept:], v[:, kept:])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(n, tokens, heads, head_dim) queries of the last tokens of keys and values -> (n,
        tokens, heads * head_dim)."""
        before = k.shape[1] - q.shape[1]
        place = torch.arange(k.shape[1], device=q.device)
        back = place[before:, None] - place  # (tokens, before + tokens)
        seen = (back >= 0) & (back < self.window)
        bias = self.distance[:, back.clamp(0, self.window - 1)].permute(1, 2, 0)
        # A few tokens: plain sums are as fast as many tiny products, and what shares a batch never
        # changes their last digit.
        scores = (q[:, :, None] * k[:, None]).sum(-1) * q.shape[-1] ** -0.5 + bias
        shares = scores.masked_fill(~seen[..., None], -torch.inf).softmax(dim=2)
        shares = F.dropout(shares, self.dropout, self.training)
        return (shares[..., None] * v[:, None]).sum(2).flatten(2)

    def _by_head(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)


def recurrence(
    mixer: str, width: int, heads: int, head_dim: int, dropout: float = 0.0
) -> Recurrence:
    """Make the mixer of one layer, "mamba" or "titans"."""
    choose("mixer", mixer, MIXERS[1:])
    if mixer == "mamba":
        return Mamba(width, dropout=dropout)
    return Titans(width, heads, head_dim, dropout=dropout)


def matched_mlp_dim(mixer: str, width: int, heads: int, head_dim: int, mlp_dim: int) -> int:
    """The width of the MLP that gives a layer with this mixer the parameters of one with attention
    and an MLP of `mlp_dim`, as nearly as a multiple of `LANES` does.

    Raises:
        ValueError: the mixer alone has as many, so nothing is left for the MLP.
    """
    if mixer == "attention":
        return mlp_dim
    with torch.device("meta"):
        alone = recurrence(mixer, width, heads, head_dim)
    inner = heads * head_dim
    attention = 4 * width * inner + width
    spare = attention - sum(parameter.numel() for parameter in alone.parameters())
    exact = mlp_dim + spare / (2 * width + 1)
    matched = LANES * round(exact / LANES)
    if matched < LANES:
        least = math.ceil(mlp_dim - exact + LANES)
        raise ValueError(
            f"expected an MLP that can give up the parameters that {mixer} has more than attention "
            f"of {heads} heads of {head_dim}, got predictor_mlp_dim={mlp_dim}. Make it {least} or "
            "more."
        )
    return matched


def _apply(memory: Tensor, key: Tensor) -> Tensor:
    """(n, heads, d_v, d_k) and (n, heads, d_k) -> (n, heads, d_v); sums of one row, whatever else
    is in the batch."""
    return (memory * key[..., None, :]).sum(-1)
