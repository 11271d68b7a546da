"""The world model of Dreamer V3 (arXiv 2301.04104): it does not collapse because it draws.

e_t   = BN(W CNN(o_t))                               what is seen of a frame
h_t   = GRU(h_{t-1}, z_{t-1}, a_{t-1})               memory; 0 where nothing is remembered
p_t   = p(z | h_t),   q_t = q(z | h_t, e_t)          prior and posterior, V categorical variables
z_t   ~ q_t                                          straight-through
ohat_t = mean picture + deconvolutions(h_t, z_t)     decoder
ehat_t = MLP(sg(h_t, z_t))                           the embedding of its own frame, for planning

loss  = sum over pixels (ohat_t - o_t)^2             reconstruction
      + beta_dyn max(1 nat, KL[sg q_t || p_t])       the prior learns what the posterior says
      + beta_rep max(1 nat, KL[q_t || sg p_t])       the posterior stays predictable, a little
      + sum (ehat_t - sg e_t)^2                      touches nothing but its own layers

Reward, continuation, actor and critic are left out: there is no reward here, and plans are
searched for. The recurrent part is `nn.rssm`.

**One latent for a frame.** Dreamer's state has a history, and a latent is of one frame. A latent
holds side by side

    e (E numbers) | class probabilities (V*C) | h (deter) | imagined (1)

For an encoded frame the probabilities are q(z | h = 0, e): known by this frame alone. For an
imagined one they are the prior's, e is ehat, and its own h goes along, so that rolling out step by
step is rolling out at once. `rollout` filters through the frames of its context, beginning at h =
0, and then imagines. The last two parts are there to be carried, not to be compared: an encoded
frame remembers nothing, and its h is 0. They are stored times 2^-10, exactly, and so count for
nothing in a squared distance.

**Costs of its own** (`contracts.Judging`), all of the last imagined latent: see `Dreamer.judge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor, nn

from lewm.contracts import Batch, DataSpec, Losses, Statistics, check_numbers
from lewm.models.nn import losses
from lewm.models.nn.engine import require_blocks_between
from lewm.models.nn.layers import BatchNorm
from lewm.models.nn.pixels import normalised, require_pictures
from lewm.models.nn.rssm import RSSM, draw, kl, layer, mode
from lewm.registry import choose

__all__ = ["DreamerConfig", "Dreamer"]

CARRIED = 2.0**-10
"""Times which what is carried along stands in a latent. A power of two loses no bit."""

REMEMBERED = 1000
"""Batches that the mean picture is of."""

MOST_WEIGHTS = 10**10
"""Of a model; more is a slip of the hand."""


@dataclass(frozen=True)
class DreamerConfig:
    """Sizes and knobs. The defaults are Dreamer V3's own: its `size200m`.

    Attributes:
        channels: of the CNN's strided convolutions, and in reverse of the decoder's. Each halves
            the picture.
        embedding_dim: E. Ours: Dreamer's posterior sees all that the CNN gives, which would be most
            of a latent here.
        deter: numbers of the memory h.
        hidden: width of the layers between.
        variables, classes: V categorical variables of C classes.
        blocks: of the block-diagonal GRU; it divides `deter`.
        unimix: share of the uniform distribution in prior and posterior.
        reconstruction_weight: of the squared error, summed over pixels in [0, 1].
        dynamics_weight, representation_weight: beta_dyn and beta_rep. Source: 1 and 0.1.
        free_bits: nats up to which a KL divergence costs nothing. Source: 1.
        imagined: what stands for z where nothing is drawn, in `rollout` and `judge`: "mean", the
            probabilities themselves, or "mode", the likeliest classes. Ours: candidates are ranked
            without the noise of a draw.
        context: K, the most frames that are filtered before imagining.
    """

    channels: tuple[int, ...] = (128, 192, 256, 256)
    embedding_dim: int = 1024
    deter: int = 8192
    hidden: int = 1024
    variables: int = 32
    classes: int = 64
    blocks: int = 8
    unimix: float = 0.01
    reconstruction_weight: float = 1.0
    dynamics_weight: float = 1.0
    representation_weight: float = 0.1
    free_bits: float = 1.0
    imagined: str = "mean"
    context: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON knows lists alone
        choose("imagined", self.imagined, ("mean", "mode"))
        sizes = ["channels", "embedding_dim", "deter", "hidden", "variables", "blocks", "context"]
        check_numbers(
            self,
            least=dict.fromkeys(sizes, 1) | {"classes": 2},
            most=dict.fromkeys([*sizes, "classes"], 10**6) | {"context": 10_000},
            below={"unimix": 1},
        )
        if not self.channels:
            raise ValueError(
                "channels must name one convolution or more, got none. Give channels as whole "
                "numbers."
            )
        if self.deter % self.blocks:
            raise ValueError(
                f"blocks must divide deter, got {self.blocks} and {self.deter}. Change one of the "
                "two."
            )
        if self.weights_about > MOST_WEIGHTS:
            raise ValueError(
                f"expected a model of at most {MOST_WEIGHTS:.0e} weights, got sizes that make "
                f"about {self.weights_about:.0e}. Lower its widths."
            )

    @property
    def codes(self) -> int:
        """Numbers of z, V*C."""
        return self.variables * self.classes

    @property
    def weights_about(self) -> int:
        """How many numbers the largest of its matrices hold together, for the smallest picture."""
        d, h, E, codes = self.deter, self.hidden, self.embedding_dim, self.codes
        pairs = sum(32 * a * b for a, b in zip(self.channels, self.channels[1:], strict=False))
        core = h * (6 * d + h + 3 * codes + E) + 4 * d * (d // self.blocks)
        return pairs + core + (d + codes) * (h + self.channels[-1]) + E * (h + self.channels[-1])

    @classmethod
    def paper(cls) -> Self:
        """The default of Dreamer V3's code, `size200m`, as published but for E and what is left
        out."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """Half a million parameters for 64 px and a CPU, and as many again in the decoder.

        Ours: CNN and memory are as small as they are because rivals have half a million as well.
        """
        return cls(
            channels=(16, 32, 64, 64),
            embedding_dim=64,
            deter=200,
            hidden=128,
            variables=16,
            classes=16,
            blocks=8,
            context=1,
        )

    def build(self, spec: DataSpec) -> Dreamer:
        """Make a model with random weights that fits the data described by `spec`.

        Raises:
            ValueError: the pictures cannot be halved as often as there are convolutions.
        """
        return Dreamer(self, spec)


class Dreamer(nn.Module):
    """CNN, recurrent state-space model and decoder. Pixels come in as uint8, actions normalised.

    The data's statistics are part of `spec`, which is stored beside the weights.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    reach: Tensor

    costs: tuple[str, ...] = ("embedding", "picture", "posterior")

    def __init__(self, config: DreamerConfig, spec: DataSpec) -> None:
        super().__init__()
        c = self.config = config
        self.spec, self.context = spec, c.context
        self._parts = (c.embedding_dim, c.codes, c.deter, 1)
        self.latent_dim = sum(self._parts)
        halvings = 2 ** len(c.channels)
        if spec.image_size % halvings:
            raise ValueError(
                f"expected pictures whose side is a multiple of {halvings} px, to be halved "
                f"{len(c.channels)} times, got {spec.image_size} px. Resize the pictures, or name "
                "fewer channels."
            )
        grid, stats = spec.image_size // halvings, spec.statistics
        self.encoder = Encoder(c.channels, grid, c.embedding_dim)
        self.rssm = RSSM(
            c.embedding_dim,
            spec.block_dim,
            c.deter,
            c.hidden,
            c.variables,
            c.classes,
            c.blocks,
            c.unimix,
        )
        state = c.deter + c.codes
        self.embedder = nn.Sequential(layer(state, c.hidden), nn.Linear(c.hidden, c.embedding_dim))
        self.decoder = Decoder(state, c.channels, grid)
        for name, values in (
            ("pixel_mean", torch.tensor(stats.pixel_mean).view(3, 1, 1)),
            ("pixel_std", torch.tensor(stats.pixel_std).view(3, 1, 1)),
            ("reach", torch.tensor(_reach(stats)).repeat(spec.frameskip)),
        ):
            self.register_buffer(name, values, persistent=False)

    # ---------------------------------------------------------------------------------- the model

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn each observation into one latent, as a frame of which nothing before is known.

        Args:
            pixels: (B, T, 3, h, w) uint8.

        Returns:
            (B, T, D) latents: e, probabilities of the posterior at h = 0, h = 0, not imagined.

        Raises:
            ValueError: the pictures are not uint8 or not of the size the model was built for.
        """
        return self._encoded(self._embed(pixels).flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def rollout(self, context: Tensor, past_actions: Tensor, actions: Tensor) -> Tensor:
        """Imagine the latents that follow `context` if `actions` are executed.

        The memory is warmed by filtering through the context: from h = 0 at its first frame, or
        from where a latent that was itself imagined stands.

        Args:
            context: (B, k, D) latents, oldest first.
            past_actions: (B, k-1, A) executed blocks, normalised; block i leaves context latent i.
            actions: (B, N, H, A) candidate blocks; block 0 leaves the last context latent.

        Returns:
            (B, N, H, D) imagined latents; index h is the latent after block h. Nothing is drawn at
            random.

        Raises:
            ValueError: the model is in training mode, or `past_actions` does not hold k-1 blocks.

        Cost: k - 1 steps of the memory of batch B, then H of batch B*N.
        """
        if self.training:
            raise ValueError(
                "a model must not plan in training mode: it draws, and is not settled. Call "
                ".eval()."
            )
        require_blocks_between(context, past_actions)
        B, N = actions.shape[:2]
        memory, chances = self._filtered(context, past_actions)
        memory, chances = (
            x[:, None].expand(B, N, *x.shape[1:]).flatten(0, 1) for x in (memory, chances)
        )
        steps = []
        for blocks in actions.flatten(0, 1).unbind(1):
            memory = self.rssm(memory, self._certain(chances), self._acted(blocks))
            chances = self.rssm.prior(memory)
            steps.append(self._imagined(memory, chances))
        return torch.stack(steps, dim=1).unflatten(0, (B, N))

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """Filter through each window from h = 0 at its first frame, and draw what is seen.

        Windows begin anywhere in an episode, so the posterior of a frame alone is trained as well.
        The draws are of torch's global generator. "prediction", of weight 0, is what planning would
        err by: the mean squared error of latents imagined one block ahead of each frame alone,
        against those of the frames that came, over all D numbers.

        Args:
            batch: (B, T, 3, h, w) pixels and (B, T-1, A) blocks, T > K.
            generator: not used.

        Raises:
            ValueError: the windows are not longer than the context.

        Source: Dreamer V3, eq. 3 to 6. Ours: the term "embedding", after LEXA (arXiv 2110.09514).
        """
        c, T = self.config, batch.pixels.shape[1]
        if self.context >= T:
            raise ValueError(
                f"windows must be longer than the context K={self.context}, got T={T} frames. "
                "Lengthen the windows."
            )
        embedding = self._embed(batch.pixels)
        blocks = self._acted(batch.actions)
        memory = embedding.new_zeros(len(embedding), c.deter)
        codes = embedding.new_zeros(len(embedding), c.codes)
        states, priors, posteriors = [], [], []
        for t in range(T):
            if t:
                memory = self.rssm(memory, codes, blocks[:, t - 1])
            priors.append(self.rssm.prior(memory))
            posteriors.append(self.rssm.posterior(memory, embedding[:, t]))
            codes = draw(posteriors[-1]).flatten(1)
            states.append(torch.cat([memory, codes], dim=-1))
        state, p, q = (torch.stack(x, dim=1) for x in (states, priors, posteriors))
        pictures = batch.pixels.flatten(0, 1).float() / 255
        if self.training:
            self.decoder.look(pictures)
        drawn = self.decoder(state.flatten(0, 1))
        terms = {
            "reconstruction": _pixel_error(drawn, pictures).mean(),
            "dynamics": kl(q.detach(), p).clamp_min(c.free_bits).mean(),
            "representation": kl(q, p.detach()).clamp_min(c.free_bits).mean(),
            "embedding": (
                (self.embedder(state.detach()) - embedding.detach()).square().sum(-1).mean()
            ),
        }
        with torch.no_grad():
            z = self._encoded(embedding.flatten(0, 1)).unflatten(0, (-1, T))
            terms["prediction"] = losses.prediction(self._next(z[:, :-1], blocks), z[:, 1:])
        return Losses(
            terms=terms,
            weights={
                "reconstruction": c.reconstruction_weight,
                "dynamics": c.dynamics_weight,
                "representation": c.representation_weight,
                "prediction": 0.0,
            },
            latents=z.detach(),
        )

    def judge(self, name: str, rollout: Tensor, goal: Tensor) -> Tensor:
        """How far the last of the imagined latents are from a goal, by one of three costs.

        A goal is one picture without a history, so what Dreamer would call its state is not
        defined. In order of what they ask of it:

        - "picture": squared error, summed over pixels, between the pictures that the decoder makes
          of both. The goal is as the model itself draws it from that frame alone, because a latent
          does not hold its picture. Blind to what the decoder does not draw.
        - "embedding": squared distance of the predicted embedding to the goal's, after LEXA.
        - "posterior": KL[q(z | h, e of the goal) || p(z | h)] with the imagined h: how surprising
          the goal would be as the frame that is seen next.

        Args:
            name: one of `costs`.
            rollout: (B, N, H, D) latents.
            goal: (B, D) encoded.

        Returns:
            (B, N) costs; NaN where a rollout diverged.

        Raises:
            ValueError: a name that is none of `costs`.

        Source: Ours; the third is the one that needs no further part.
        """
        choose("cost", name, self.costs)
        B, N = rollout.shape[:2]
        end = rollout[:, :, -1].flatten(0, 1)
        goal = goal[:, None].expand(B, N, -1).flatten(0, 1)
        embedding, chances, memory, _ = self._taken_apart(end)
        goal_embedding, goal_chances, goal_memory, _ = self._taken_apart(goal)
        if name == "embedding":
            costs = (embedding - goal_embedding).square().sum(-1)
        elif name == "picture":
            drawn = self.decoder(torch.cat([memory, self._certain(chances)], dim=-1))
            # one picture per goal, not per candidate
            wanted = torch.cat([goal_memory, self._certain(goal_chances)], dim=-1)[::N]
            wanted = self.decoder(wanted).repeat_interleave(N, dim=0)
            costs = _pixel_error(drawn, wanted)
        else:
            costs = kl(self.rssm.posterior(memory, goal_embedding), chances)
        return costs.unflatten(0, (B, N))

    # ----------------------------------------------------------------------------------- its parts

    def _embed(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, h, w) uint8 -> (B, T, E)."""
        require_pictures(pixels, self.spec.image_size)
        flat = normalised(pixels.flatten(0, 1), self.pixel_mean, self.pixel_std)
        return self.encoder(flat).unflatten(0, pixels.shape[:2])

    def _acted(self, blocks: Tensor) -> Tensor:
        """(..., A) normalised blocks -> what the memory is told: of the recorded range at most 1.

        Dreamer's worlds take actions in [-1, 1], and a larger one is divided by its own size. Ours:
        z-scored actions, of which a third are larger, are first divided by the recorded range.
        """
        scaled = blocks / self.reach
        return scaled / scaled.detach().abs().clamp_min(1.0)

    def _certain(self, chances: Tensor) -> Tensor:
        """(n, V, C) probabilities -> (n, V*C), what stands for z where nothing is drawn."""
        return (chances if self.config.imagined == "mean" else mode(chances)).flatten(1)

    def _encoded(self, embedding: Tensor) -> Tensor:
        """(n, E) -> (n, D) latents of frames of which nothing before is known."""
        nothing = embedding.new_zeros(len(embedding), self.config.deter)
        chances = self.rssm.posterior(nothing, embedding)
        return torch.cat([embedding, chances.flatten(1), nothing, nothing[:, :1]], dim=-1)

    def _imagined(self, memory: Tensor, chances: Tensor) -> Tensor:
        """(n, deter) and (n, V, C) -> (n, D) latents that say that they were imagined."""
        embedding = self.embedder(torch.cat([memory, self._certain(chances)], dim=-1))
        carried = CARRIED * torch.cat([memory, torch.ones_like(memory[:, :1])], dim=-1)
        return torch.cat([embedding, chances.flatten(1), carried], dim=-1)

    def _taken_apart(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(n, D) -> (n, E), (n, V, C), (n, deter), and (n, 1) which were imagined."""
        embedding, chances, memory, imagined = latents.split(self._parts, dim=-1)
        chances = chances.unflatten(-1, (self.config.variables, self.config.classes))
        return embedding, chances, memory / CARRIED, imagined > 0

    def _filtered(self, context: Tensor, past_actions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, k, D) and (B, k-1, A) -> (B, deter) and (B, V, C) of the last."""
        _, chances, memory, _ = self._taken_apart(context[:, 0])
        blocks = self._acted(past_actions)
        for t in range(1, context.shape[1]):
            embedding, own_chances, own_memory, imagined = self._taken_apart(context[:, t])
            memory = self.rssm(memory, self._certain(chances), blocks[:, t - 1])
            chances = self.rssm.posterior(memory, embedding)
            # who was imagined stands where it was imagined
            memory = torch.where(imagined, own_memory, memory)
            chances = torch.where(imagined[..., None], own_chances, chances)
        return memory, chances

    def _next(self, latents: Tensor, blocks: Tensor) -> Tensor:
        """(B, n, D) and (B, n, A), as the memory is told them -> (B, n, D): each by its latent
        alone."""
        _, chances, memory, _ = self._taken_apart(latents.flatten(0, 1))
        memory = self.rssm(memory, self._certain(chances), blocks.flatten(0, 1))
        following = self._imagined(memory, self.rssm.prior(memory))
        return following.unflatten(0, latents.shape[:2])


class Encoder(nn.Module):
    """(n, 3, h, w) -> (n, E): strided convolutions, a linear layer and batch norm.

    Source: Dreamer V3, with RMSNorm over channels and SiLU. Ours: the linear layer and the batch
    norm. Frames look nearly alike, and without it so do their embeddings: a training of some
    hundred updates then never tells them apart.
    """

    def __init__(self, channels: Sequence[int], grid: int, embedding_dim: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            steps += [nn.Conv2d(before, after, 4, 2, 1), ChannelNorm(after), nn.SiLU()]
        self.convolutions = nn.Sequential(*steps)
        self.out = nn.Linear(channels[-1] * grid**2, embedding_dim)
        self.norm = BatchNorm(embedding_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.out(self.convolutions(pixels).flatten(1)))


class Decoder(nn.Module):
    """(n, state) -> (n, 3, h, w): the encoder's convolutions in reverse draw what differs from the
    mean picture.

    Attributes:
        mean: (3, h, w) in [0, 1], of the batches so far; the last `REMEMBERED` weigh as a running
            average.
        batches: how many there were.

    Source: Dreamer V3. Ours: the mean picture, in the place of a grey one or of a sigmoid. A short
    training would otherwise learn nothing but it.
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, state: int, channels: Sequence[int], grid: int) -> None:
        super().__init__()
        self.shape = (channels[-1], grid, grid)
        self.inward = nn.Linear(state, math.prod(self.shape))
        steps: list[nn.Module] = [ChannelNorm(channels[-1]), nn.SiLU()]
        for before, after in zip(channels[:0:-1], channels[-2::-1], strict=True):
            steps += [nn.ConvTranspose2d(before, after, 4, 2, 1), ChannelNorm(after), nn.SiLU()]
        self.convolutions = nn.Sequential(*steps, nn.ConvTranspose2d(channels[0], 3, 4, 2, 1))
        size = grid * 2 ** len(channels)
        self.register_buffer("mean", torch.full((3, size, size), 0.5))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, state: Tensor) -> Tensor:
        return self.mean + self.convolutions(self.inward(state).unflatten(1, self.shape))

    @torch.no_grad()
    def look(self, pictures: Tensor) -> None:
        """Take (n, 3, h, w) pictures in [0, 1] into the mean."""
        self.batches += 1
        weight = 1 / self.batches.clamp_max(REMEMBERED)
        self.mean += weight * (pictures.mean(dim=0) - self.mean)


class ChannelNorm(nn.Module):
    """(n, c, h, w): RMSNorm over the channels of each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-4) * self.weight


def _pixel_error(drawn: Tensor, wanted: Tensor) -> Tensor:
    """(n, 3, h, w) each -> (n,) squared error, summed over pixels and colours. A mean would not see
    a dot of a hundredth of the picture."""
    return (drawn - wanted).square().flatten(1).sum(-1)


def _reach(statistics: Statistics) -> list[float]:
    """Per action dimension the largest recorded action, normalised; 1 where nobody counted."""
    bounds = (statistics.action_low, statistics.action_high)
    return [
        max([1.0, *(abs(bound[i] - mean) / std for bound in bounds if bound)])
        for i, (mean, std) in enumerate(
            zip(statistics.action_mean, statistics.action_std, strict=True)
        )
    ]
