"""A recurrent state-space model with categorical latents, the core of Dreamer V3.

h_t = GRU(h_{t-1}, z_{t-1}, a_{t-1})       what is remembered; block-diagonal
p_t = prior(h_t)                           what is expected of the frame, before it is seen
q_t = posterior(h_t, e_t)                  what is known of it, once its embedding e_t is

p and q are V categorical distributions of C classes each, mixed with 1% of the uniform one. A state
is h with z, which is drawn from q (or p), V one-hot vectors in a row. Here `V` counts variables and
`C` classes; h has `deter` numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RSSM", "BlockLinear", "draw", "kl", "mode"]

TINY = 1e-30
"""Added to a probability before its logarithm is taken, where nothing is mixed in."""


class RSSM(nn.Module):
    """Memory, prior and posterior.

    Args:
        embedding_dim: E, of what the posterior sees of a frame.
        block_dim: A.
        deter: numbers of the memory h.
        hidden: width of the layers between.
        variables, classes: V and C.
        blocks: of the GRU's block-diagonal products; it divides `deter`. 1 is dense.
        unimix: share of the uniform distribution in every prior and posterior.

    Source: Dreamer V3 (arXiv 2301.04104) and its code: one layer before the GRU and in the
    posterior, two in the prior, RMSNorm and SiLU, and a bias of -1 on the update gate. Ours:
    weights begin as PyTorch has it.
    """

    def __init__(
        self,
        embedding_dim: int,
        block_dim: int,
        deter: int,
        hidden: int,
        variables: int,
        classes: int,
        blocks: int = 1,
        unimix: float = 0.01,
    ) -> None:
        super().__init__()
        self.deter, self.variables, self.classes = deter, variables, classes
        self.blocks, self.unimix = blocks, unimix
        codes = variables * classes
        self.inputs = nn.ModuleList(layer(n, hidden) for n in (deter, codes, block_dim))
        self.mix = BlockLinear(deter + blocks * 3 * hidden, deter, blocks)
        self.mix_norm = nn.RMSNorm(deter, eps=1e-4)
        self.gates = BlockLinear(deter, 3 * deter, blocks)
        self.prior_layers = nn.Sequential(
            layer(deter, hidden), layer(hidden, hidden), nn.Linear(hidden, codes)
        )
        self.posterior_layers = nn.Sequential(
            layer(deter + embedding_dim, hidden), nn.Linear(hidden, codes)
        )

    def forward(self, memory: Tensor, codes: Tensor, actions: Tensor) -> Tensor:
        """Remember: (n, deter), (n, V*C) and (n, A) of one moment -> (n, deter) of the next."""
        parts = zip(self.inputs, (memory, codes, actions), strict=True)
        told = torch.cat([part(x) for part, x in parts], dim=-1)
        # each block sees its own part of the memory, and all of the rest
        told = told[:, None].expand(-1, self.blocks, -1)
        seen = torch.cat([memory.unflatten(-1, (self.blocks, -1)), told], dim=-1)
        mixed = F.silu(self.mix_norm(self.mix(seen).flatten(-2)))
        gates = self.gates(mixed.unflatten(-1, (self.blocks, -1)))
        reset, candidate, update = (x.flatten(-2) for x in gates.chunk(3, dim=-1))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)
        return update * candidate + (1 - update) * memory

    def prior(self, memory: Tensor) -> Tensor:
        """(n, deter) -> (n, V, C) probabilities."""
        return self._probabilities(self.prior_layers(memory))

    def posterior(self, memory: Tensor, embedding: Tensor) -> Tensor:
        """(n, deter) and (n, E) -> (n, V, C) probabilities."""
        return self._probabilities(self.posterior_layers(torch.cat([memory, embedding], dim=-1)))

    def _probabilities(self, logits: Tensor) -> Tensor:
        probabilities = logits.float().unflatten(-1, (self.variables, self.classes)).softmax(-1)
        return (1 - self.unimix) * probabilities + self.unimix / self.classes


class BlockLinear(nn.Module):
    """(n, blocks, in / blocks) -> (n, blocks, out / blocks): each block has a matrix of its own."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int) -> None:
        super().__init__()
        fan_in = in_dim // blocks
        bound = fan_in**-0.5  # as `nn.Linear` begins
        shape = (blocks, fan_in, out_dim // blocks)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(blocks, 1, out_dim // blocks))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)


def layer(in_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, RMSNorm, SiLU."""
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.RMSNorm(out_dim, eps=1e-4), nn.SiLU())


def draw(probabilities: Tensor) -> Tensor:
    """Draw classes, (..., V, C) probabilities -> (..., V, C) one-hot, from the global generator.

    Straight-through: the gradient of a draw is that of its probabilities.
    """
    flat = probabilities.detach().flatten(0, -2)
    drawn = torch.multinomial(flat, 1).view(*probabilities.shape[:-1], 1)
    return _straight_through(probabilities, drawn)


def mode(probabilities: Tensor) -> Tensor:
    """The likeliest classes, (..., V, C) -> (..., V, C) one-hot; straight-through as in `draw`."""
    return _straight_through(probabilities, probabilities.detach().argmax(-1, keepdim=True))


def _straight_through(probabilities: Tensor, chosen: Tensor) -> Tensor:
    one_hot = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)
    return one_hot + (probabilities - probabilities.detach())


def kl(q: Tensor, p: Tensor) -> Tensor:
    """KL[q || p] in nats, (..., V, C) each -> (...), summed over the variables."""
    return (q * ((q + TINY).log() - (p + TINY).log())).sum(dim=(-2, -1))
