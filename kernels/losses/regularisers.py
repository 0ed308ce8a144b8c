"""Terms beside a surrogate: KL to the reference, and the entropy bonus."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from quadriga.kernels.losses.base import Fields, Head, Loss, Stats, k3_estimate, selected


@dataclass(frozen=True)
class ReferenceKL(Loss):
    """An estimate of KL(policy || reference) per token (Schulman 2020), to be minimised.

    With x = logprob - ref_logprob: k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x. On tokens of the policy the gradient of
    k1 is 0 in expectation, that of k2 is the gradient of KL(policy || reference), that of k3 the one of
    KL(reference || policy). For k3, x is clamped to ±20 against overflow: beyond, a token has no gradient.
    Output logprobs [T]; fields ref_logprobs and weights, [T] each.
    """

    estimator: Literal["k1", "k2", "k3"] = "k3"
    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("ref_logprobs", "weights")

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        new, reference, weights = (
            selected(x, fields["weights"]) for x in (output["logprobs"], fields["ref_logprobs"], fields["weights"])
        )
        x = new - reference
        match self.estimator:
            case "k1":
                each = x
            case "k2":
                each = 0.5 * x.square()
            case "k3":
                each = k3_estimate(x)
        loss = (each * weights).sum()
        return loss, {"loss": loss.detach()}


@dataclass(frozen=True)
class EntropyBonus(Loss):
    """Minus the entropy of the policy's distributions, in nats: minimised, it keeps answers varied.

    Output entropy [T], with a gradient; field weights [T].
    """

    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("weights",)
    needs_entropy: ClassVar[bool] = True

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        weights = fields["weights"]
        loss = -(selected(output["entropy"], weights) * selected(weights, weights)).sum()
        return loss, {"loss": loss.detach()}
