"""What the policy's optimizer step minimises: a surrogate, and further parts beside it, each with its settings."""

from abc import ABC
from typing import Any, ClassVar, Literal

from pydantic import Field

from quadriga.data.registry import Registry, import_object
from quadriga.data.settings import Settings


class LossSettings(Settings, ABC):
    """Settings of a loss: a section with `type: NAME`, or `type: module:Class` for a user's.

    loss: the `kernels.losses.base:Loss` as `module:Class`, which is made of the other fields; it runs in the workers.
    """

    type: str
    """Kind of loss."""

    loss: ClassVar[str]

    def build(self) -> Any:
        """Return the loss. It is named by text, because loading a config need not import torch."""
        fields = {name: getattr(self, name) for name in type(self).model_fields if name not in ("type", "coefficient")}
        return import_object(self.loss)(**fields)


class PolicyLossSettings(LossSettings, ABC):
    """A surrogate of the policy gradient."""


class ClipSettings(PolicyLossSettings):
    """PPO's clipped surrogate (Schulman et al. 2017), with clip-higher, dual clip and GSPO's sequence ratio."""

    type: Literal["clip"] = "clip"
    """Kind of loss."""
    clip: float = Field(0.2, gt=0)
    """Distance from 1 beyond which a probability ratio earns nothing more."""
    clip_high: float | None = Field(None, gt=0)
    """The same above 1, where a larger one lets unlikely tokens grow (Yu et al. 2025); null takes `clip`."""
    dual_clip: float | None = Field(None, gt=1)
    """Ratio at which the loss of a bad token stops growing (Ye et al. 2020), for example 3; null does not limit it."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether each token has its own ratio, or all tokens of a sequence the geometric mean of theirs (GSPO: Zheng et
    al. 2025; take a `clip` of about 3e-4 and `aggregation: sequence`)."""

    loss: ClassVar[str] = "quadriga.kernels.losses.policy:PolicyClip"


class CispoSettings(PolicyLossSettings):
    """CISPO: the policy gradient with a clipped importance weight (MiniMax 2025); every token keeps its gradient."""

    type: Literal["cispo"] = "cispo"
    """Kind of loss."""
    clip_low: float | None = Field(None, gt=0, le=1)
    """Distance below 1 at which the weight is clipped; null has no lower limit."""
    clip_high: float = Field(0.2, gt=0)
    """Distance above 1 at which the weight is clipped."""

    loss: ClassVar[str] = "quadriga.kernels.losses.policy:Cispo"


class PartSettings(LossSettings, ABC):
    """A part of the policy's loss beside the surrogate."""

    coefficient: float
    """Factor of the part."""

    @property
    def name(self) -> str:
        """Prefix of its metrics: `actor/<name>_loss`."""
        return self.type.rpartition(":")[2].lower()


class ReferenceKLSettings(PartSettings):
    """KL to the reference as part of the loss, beside or instead of `algorithm.kl`, which is part of the reward."""

    type: Literal["kl"] = "kl"
    """Kind of part."""
    coefficient: float = Field(0.04, gt=0)
    """Weight of the KL per nat."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL per token (Schulman 2020). In a loss, k1 has no gradient in expectation, k2 has that of
    KL(policy || reference), k3 that of KL(reference || policy)."""

    loss: ClassVar[str] = "quadriga.kernels.losses.regularisers:ReferenceKL"


class EntropySettings(PartSettings):
    """An entropy bonus, which keeps answers varied."""

    type: Literal["entropy"] = "entropy"
    """Kind of part."""
    coefficient: float = Field(0.01, gt=0)
    """Weight of the entropy per nat."""

    loss: ClassVar[str] = "quadriga.kernels.losses.regularisers:EntropyBonus"


POLICY_LOSSES: Registry[type[PolicyLossSettings]] = Registry(
    "a policy loss", PolicyLossSettings, {"clip": ClipSettings, "cispo": CispoSettings}
)
LOSS_PARTS: Registry[type[PartSettings]] = Registry(
    "a loss part", PartSettings, {"kl": ReferenceKLSettings, "entropy": EntropySettings}
)
