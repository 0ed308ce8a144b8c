"""The negative log-likelihood of tokens: pre-training and fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quadriga.kernels.losses.base import Fields, Head, Loss, Stats, entropy_sum, selected


@dataclass(frozen=True)
class NegativeLogLikelihood(Loss):
    """Negative log-likelihood: -log p(token).

    Output logprobs [T] (and entropy [T], for the statistics); field weights [T].
    """

    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("weights",)

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        weights = fields["weights"]
        loss = -(selected(output["logprobs"], weights) * selected(weights, weights)).sum()
        return loss, {"loss": loss.detach()} | entropy_sum(output, weights)
