"""Settings of PPO itself: estimator, clipping, KL penalty, epochs."""

from typing import Annotated, Literal

from pydantic import Field

from quadriga.data.registry import Choice
from quadriga.data.settings import Settings
from quadriga.orchestrator.algorithms.aggregation import Aggregation
from quadriga.orchestrator.algorithms.base import Estimator
from quadriga.orchestrator.algorithms.gae import Gae
from quadriga.orchestrator.algorithms.losses import (
    LOSS_PARTS,
    POLICY_LOSSES,
    ClipSettings,
    PartSettings,
    PolicyLossSettings,
)
from quadriga.orchestrator.algorithms.registry import ESTIMATORS


class AdaptiveKL(Settings):
    """Ziegler et al. 2019, section 2.2: the coefficient follows a target KL."""

    target: float = Field(6.0, gt=0)
    """KL per sample that the coefficient steers to, in nats."""
    horizon: int = Field(10000, gt=0)
    """Number of samples over which the coefficient adapts."""


class KLSettings(Settings):
    """The per-token KL penalty that is part of the reward."""

    coefficient: float = Field(0.05, ge=0)
    """Weight of the penalty per nat; with `adaptive` its starting value."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL per token (Schulman 2020): k1 is unbiased, k2 is biased and never negative, k3 is both
    unbiased and never negative."""
    adaptive: AdaptiveKL | None = None
    """Target that the coefficient follows; null keeps it fixed."""


class AlgorithmSettings(Settings):
    """PPO's own numbers."""

    estimator: Annotated[Estimator, Choice(ESTIMATORS)] = Gae()
    """Advantage estimator, chosen by `type`."""
    loss: Annotated[PolicyLossSettings, Choice(POLICY_LOSSES)] = ClipSettings()
    """Surrogate that the policy minimises, chosen by `type`."""
    parts: list[Annotated[PartSettings, Choice(LOSS_PARTS)]] = []
    """Further parts of the policy's loss, each chosen by `type`."""
    aggregation: Aggregation = "token"
    """How token losses become one: `token`, their mean over the minibatch; `sequence`, the mean over answers of their
    means; `constant`, their sum per answer over the longest possible answer, so that no length is favoured."""
    value_clip: float | None = Field(0.2, gt=0)
    """Largest change of a value per update that the value loss rewards; null does not clip."""
    kl: KLSettings = KLSettings()
    """Penalty for moving away from the reference."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Amount subtracted from the score of an answer that did not end."""
    reward_clip: float | None = Field(10.0, gt=0)
    """Largest absolute score; null does not clip."""
    epochs: int = Field(1, ge=1)
    """Number of passes over a batch of samples."""
    minibatch_size: int = Field(64, ge=1)
    """Samples per optimizer step."""

    @property
    def needs_critic(self) -> bool:
        """Whether the estimator reads a critic's values."""
        return self.estimator.needs_critic
