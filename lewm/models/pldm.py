"""PLDM (arXiv 2502.14819): prediction, and up to six terms that keep latents from collapsing.

L = sim   mean (zhat_t - z_t)^2                                  prediction
  + alpha mean_d max(0, 1 - std_B z_d)                           variance
  + beta  sum_{i != j} C_ij^2 / D(D-1),  C = cov_B z             covariance
  + gamma mean (z_{t+1} - z_t)^2                                 time similarity
  + zeta  mean_d max(0, 1 - std_T z_d)                           variance over time
  + nu    the covariance over time                               covariance over time
  + mu    mean (MLP[z_t; z_{t+1}] - a_t)^2                       inverse dynamics

Nothing is detached, and there is no target network. The original unrolls its predictor open loop
over the whole window and looks at the first frame for variance and covariance. LeWM's authors, who
compare with it, predict one step and look at all frames. Both are here, with the weights that were
published for each: they differ by more than methods do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Generator, Tensor

from lewm.contracts import Batch, DataSpec, Losses, check_numbers
from lewm.models.nn import losses
from lewm.models.nn.layers import InverseDynamics, rows_of_all_devices
from lewm.models.nn.trunk import Trunk, TrunkConfig

__all__ = ["PLDMConfig", "PLDM"]


@dataclass(frozen=True)
class PLDMConfig(TrunkConfig):
    """PLDM's six knobs. The defaults are the weights that LeWM's authors chose out of 256.

    Attributes:
        variance_weight, covariance_weight: alpha and beta.
        slowness_weight: gamma, of the time similarity.
        time_variance_weight, time_covariance_weight: zeta and nu.
        inverse_weight, inverse_dim: mu, and the hidden width of the inverse dynamics.
        open_loop: predict the window from its first frame alone, as the original does.
        first_frame: variance and covariance of the first frame of the windows alone, likewise.
        centred_time: take each step's batch mean away before the variance over time, as LeWM's
            authors do: motion that all share does not count.
    """

    variance_weight: float = 18.0
    covariance_weight: float = 12.0
    slowness_weight: float = 0.2
    time_variance_weight: float = 0.7
    time_covariance_weight: float = 0.0
    inverse_weight: float = 0.0
    inverse_dim: int = 512
    open_loop: bool = False
    first_frame: bool = False
    centred_time: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, least={"inverse_dim": 1}, most={"inverse_dim": 10**6})

    @property
    def weights_about(self) -> int:
        """As of the parts; the inverse dynamics are included."""
        return super().weights_about + 2 * self.latent_dim * self.inverse_dim

    @classmethod
    def tiny(cls) -> Self:
        """LeWM's tiny parts, with the weights that eb_jepa publishes for Two-Rooms with random
        walls. Of those published they are the ones that plan at this size (docs/rivals.md)."""
        return replace(super().tiny().eb_jepa(), inverse_dim=256)

    def eb_jepa(self) -> Self:
        """With the weights of eb_jepa's Two-Rooms. Source: facebookresearch/eb_jepa."""
        return replace(
            self,
            variance_weight=16.0,
            covariance_weight=8.0,
            slowness_weight=12.0,
            time_variance_weight=0.0,
            inverse_weight=1.0,
        )

    def wall(self) -> Self:
        """As the original trains it on its Wall, with many transitions. Source: vladisai/PLDM."""
        return replace(
            self,
            variance_weight=3.98,
            covariance_weight=6.92,
            slowness_weight=0.742,
            time_variance_weight=0.245,
            inverse_weight=1.07,
            open_loop=True,
            first_frame=True,
            centred_time=False,
        )

    def few_data(self) -> Self:
        """As the original trains it on its Wall, with 81,000 transitions or fewer."""
        return replace(
            self.wall(),
            variance_weight=2.2,
            covariance_weight=13.0,
            slowness_weight=0.5,
            time_variance_weight=0.19,
            inverse_weight=2.0,
        )

    def build(self, spec: DataSpec) -> PLDM:
        """Make a model with random weights that fits the data described by `spec`."""
        return PLDM(self, spec)


class PLDM(Trunk):
    """LeWorldModel's parts and an inverse dynamics, trained by seven terms."""

    config: PLDMConfig

    def __init__(self, config: PLDMConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.inverse = (
            InverseDynamics(config.latent_dim, spec.block_dim, config.inverse_dim)
            if config.inverse_weight
            else None
        )

    def loss(self, batch: Batch, generator: Generator | None = None) -> Losses:
        """The seven terms; one of weight 0 is left out. Nothing is drawn.

        Raises:
            ValueError: the windows are not longer than the context, or the batch holds one window.

        Source: PLDM, sec. 3 and its code; centred time and single steps: stable-worldmodel.
        """
        config = self.config
        if config.open_loop:
            z = self.encode(batch.pixels)
            predicted, target = self.open_loop(z[:, :1], batch.actions), z[:, 1:]
        else:
            z, predicted, target = self.transitions(batch)
        whole = rows_of_all_devices(z)  # variances are those of the batch
        spread = whole[:, 0] if config.first_frame else whole
        moved = whole - whole.mean(dim=0) if config.centred_time else whole
        along = moved.transpose(0, 1)  # (T, B, D): statistics are over the first axis

        terms: dict[str, Tensor] = {"prediction": losses.prediction(predicted, target)}
        weights: dict[str, float] = {}

        def add(name: str, weight: float, value: Tensor) -> None:
            terms[name], weights[name] = value, weight

        if config.variance_weight:
            add("variance", config.variance_weight, losses.variance(spread))
        if config.covariance_weight:
            add("covariance", config.covariance_weight, losses.covariance(spread))
        if config.slowness_weight:
            add("slowness", config.slowness_weight, losses.slowness(z))
        if config.time_variance_weight:
            add("time_variance", config.time_variance_weight, losses.variance(along))
        if config.time_covariance_weight:
            add("time_covariance", config.time_covariance_weight, losses.covariance(along))
        if self.inverse is not None:
            add("inverse", config.inverse_weight, self.inverse.loss(z, batch.actions))
        return Losses(terms, weights, latents=z.detach())
