"""LeWorldModel (arXiv 2603.19312): one latent per frame, next-latent prediction, SIGReg, nothing
else.

z_t      = projector(ViT(o_t))                                      encode
zhat_t+1 = projector(Transformer(z_{t-K+1..t}; AdaLN(a_{t-K+1..t})))  predict
loss     = mean (zhat_{t+1} - z_{t+1})^2 + lambda SIGReg(z)         end to end, targets not detached

The parts, and planning with them, are `nn.trunk`; what follows is what they are trained for. Three
more terms that the literature found to matter are options, off by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from lewm.contracts import Batch, DataSpec, Losses, check_numbers
from lewm.models.nn import losses
from lewm.models.nn.decoder import Decoder, tiled
from lewm.models.nn.layers import InverseDynamics
from lewm.models.nn.sigreg import draw_directions, sigreg
from lewm.models.nn.trunk import Trunk, TrunkConfig

__all__ = ["LeWMConfig", "LeWM"]


@dataclass(frozen=True)
class LeWMConfig(TrunkConfig):
    """The one knob of LeWorldModel, lambda, beside the sizes of its parts.

    Attributes:
        sigreg_weight: lambda. Source: 0.1 in the paper's text, 0.09 in its code.
        sigreg_slices: M random directions per update.
        sigreg_knots: Q quadrature nodes on [0, 3].
        sigreg_pooled: test the latents of all frames of all windows as one sample, not each time
            step on its own. Ours: many short windows show more distinct pictures per update than
            few long ones, and pooled they make one large sample.
        stop_gradient: detach the prediction targets: an ablation, off in the paper.
        sigreg_subspaces: test the latents in so many groups of D / n dimensions, each on its own.
            Ours, after Sub-JEPA (arXiv 2605.09241); 1 is the paper.
        inverse_weight: of telling the blocks between two latents from them; 0 in the paper. It
            makes what moves by the action worth a place in the latent, also where something else is
            as predictable. Source: PLDM, Delta-JEPA (arXiv 2606.31232).
        inverse_gap: blocks between the two.
        inverse_dim: hidden width of the inverse dynamics.
        multistep_weight: of predicting the whole window from its first frame alone; 0 in the
            paper. Source: JEPA-WM (arXiv 2512.24497).
        reconstruction_weight: of drawing every picture from its latent, in stds of a pixel: an
            ablation, which the paper finds to harm planning.
    """

    sigreg_weight: float = 0.1
    sigreg_slices: int = 1024
    sigreg_knots: int = 17
    sigreg_pooled: bool = False
    stop_gradient: bool = False
    sigreg_subspaces: int = 1
    inverse_weight: float = 0.0
    inverse_gap: int = 1
    inverse_dim: int = 256
    multistep_weight: float = 0.0
    reconstruction_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(
            self,
            least={"sigreg_knots": 2}
            | dict.fromkeys(("sigreg_slices", "sigreg_subspaces", "inverse_gap", "inverse_dim"), 1),
            most={"sigreg_slices": 10**6, "sigreg_knots": 1000, "inverse_gap": 1000}
            | {"inverse_dim": 10**6},
        )
        if self.latent_dim % self.sigreg_subspaces:
            raise ValueError(
                f"sigreg_subspaces must divide latent_dim, got {self.sigreg_subspaces} and "
                f"{self.latent_dim}. Change one of the two."
            )

    @property
    def weights_about(self) -> int:
        """As of the parts; SIGReg's directions are included."""
        return super().weights_about + self.latent_dim * self.sigreg_slices

    def build(self, spec: DataSpec) -> LeWM:
        """Make a model with random weights that fits the data described by `spec`."""
        return LeWM(self, spec)


class LeWM(Trunk):
    """Encoder, predictor, two projectors and an action encoder, trained together by two terms."""

    config: LeWMConfig

    def __init__(self, config: LeWMConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.inverse = (
            InverseDynamics(
                config.latent_dim, spec.block_dim, config.inverse_dim, config.inverse_gap
            )
            if config.inverse_weight
            else None
        )
        self.decoder = (
            Decoder(config.latent_dim, spec.image_size) if config.reconstruction_weight else None
        )

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """Prediction error of every window of K latents in the batch, plus SIGReg on all latents.

        Args:
            batch: (B, T, 3, h, w) pixels and (B, T-1, A) blocks, T > K.
            generator: draws SIGReg's directions.

        Raises:
            ValueError: the windows are not longer than the context.

        Source: LeWorldModel, eq. 1 to 4.
        """
        config = self.config
        z, predicted, target = self.transitions(batch)
        target = target.detach() if config.stop_gradient else target
        sample = z.flatten(0, 1)[:, None] if config.sigreg_pooled else z
        # what is tested apart stands side by side, as if it were more time steps
        sample = sample.unflatten(-1, (config.sigreg_subspaces, -1)).flatten(1, 2)
        directions = draw_directions(sample.shape[-1], config.sigreg_slices, generator, z.device)
        terms = {
            "prediction": losses.prediction(predicted, target),
            "sigreg": sigreg(sample, directions, config.sigreg_knots),
        }
        weights = {"sigreg": config.sigreg_weight}
        if self.inverse is not None:
            terms["inverse"] = self.inverse.loss(z, batch.actions)
            weights["inverse"] = config.inverse_weight
        if config.multistep_weight:
            ahead, whole = self.open_loop(z[:, :1], batch.actions), z[:, 1:]
            whole = whole.detach() if config.stop_gradient else whole
            terms["multistep"] = losses.prediction(ahead, whole)
            weights["multistep"] = config.multistep_weight
        if self.decoder is not None:
            drawn = self.decoder(z.flatten(0, 1)[:, None], self.decoder.places)
            shown = tiled(self.normalised(batch.pixels.flatten(0, 1)))
            terms["reconstruction"] = losses.prediction(drawn, shown)
            weights["reconstruction"] = config.reconstruction_weight
        return Losses(terms, weights, latents=z.detach())
