"""LeWorldModel (arXiv 2603.19312): one latent per frame, next-latent prediction, SIGReg, nothing
else.

z_t      = projector(ViT(o_t))                                      encode
zhat_t+1 = projector(Transformer(z_{t-K+1..t}; AdaLN(a_{t-K+1..t})))  predict
loss     = mean (zhat_{t+1} - z_{t+1})^2 + lambda SIGReg(z)         end to end, targets not detached

The parts, and planning with them, are `nn.trunk`; what follows is what they are trained for.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from lewm.contracts import Batch, DataSpec, Losses, check_numbers
from lewm.models.nn import losses
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
    """

    sigreg_weight: float = 0.1
    sigreg_slices: int = 1024
    sigreg_knots: int = 17
    sigreg_pooled: bool = False
    stop_gradient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(
            self,
            least={"sigreg_slices": 1, "sigreg_knots": 2},
            most={"sigreg_slices": 10**6, "sigreg_knots": 1000},
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

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """Prediction error of every window of K latents in the batch, plus SIGReg on all latents.

        Args:
            batch: (B, T, 3, h, w) pixels and (B, T-1, A) blocks, T > K.
            generator: draws SIGReg's directions.

        Raises:
            ValueError: the windows are not longer than the context.

        Source: LeWorldModel, eq. 1 to 4.
        """
        z, predicted, target = self.transitions(batch)
        directions = draw_directions(
            self.latent_dim, self.config.sigreg_slices, generator, z.device
        )
        sample = z.flatten(0, 1)[:, None] if self.config.sigreg_pooled else z
        return Losses(
            terms={
                "prediction": losses.prediction(
                    predicted, target.detach() if self.config.stop_gradient else target
                ),
                "sigreg": sigreg(sample, directions, self.config.sigreg_knots),
            },
            weights={"sigreg": self.config.sigreg_weight},
            latents=z.detach(),
        )
