"""Loss: what every loss is and returns, and the column that says how much each token counts.

A loss returns the *sum* over its units, each times its weight, and sums of statistics. The caller divides by the
normaliser of the optimizer step, over every rank and micro-batch, so that a token weighs the same in whatever
micro-batch it is. The column `weights` holds 0 for tokens that are not learned; what else it holds decides the mean
that is taken: 1 on every action token is the token mean, 1 / length the mean of sequence means, and so on. Sums are
taken in float32.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

Fields = dict[str, Tensor]
Stats = dict[str, Tensor]
Head = Literal["logprobs", "values", "scores"]
K3_RANGE = 20.0
"""Largest log ratio, in nats, that the estimate k3 of a KL tells from larger ones."""


class Loss(ABC):
    """A loss over one micro-batch; subclasses are frozen dataclasses, because they travel to the workers.

    head: the output of the model that is read. fields: names of the batch fields that are read. needs_entropy: whether
    the gradient goes through `output["entropy"]`, which costs more.
    """

    head: ClassVar[Head]
    fields: ClassVar[tuple[str, ...]]
    needs_entropy: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        """Return the weighted sum over the units, with gradient, and statistics without.

        output: what the head gave. fields: those that are declared, and `cu_seqlens` [N+1], on the host, the borders of
        the sequences. Statistics are sums over the units whose weight is not 0, each counted once, but extremes where a
        name ends in `_max` or `_min` (-inf or inf if there is no unit); `kernels.statistics` reduces them.
        """

    def of_unmoved_weights(self) -> "Loss":
        """Return this loss for the weights that sampled: where it compares with old log-probs, these are the new."""
        return self


def selected(values: Tensor, weights: Tensor) -> Tensor:
    """Return the tokens whose weight is not 0, in float32. Multiplying by 0 instead would let nan through."""
    return values[weights != 0].float()


def largest(values: Tensor) -> Tensor:
    """Return the maximum, -inf if there are no values."""
    return values.max() if values.numel() else values.new_tensor(-torch.inf)


def k3_estimate(x: Tensor) -> Tensor:
    """Return exp(-x) - 1 + x, with x clamped to ±`K3_RANGE`, where the exponential would overflow to inf."""
    x = x.clamp(-K3_RANGE, K3_RANGE)
    return torch.expm1(-x) + x


def entropy_sum(output: Fields, weights: Tensor) -> Stats:
    """Return the summed entropy of the tokens that count, if the model gave one."""
    return {"entropy": selected(output["entropy"].detach(), weights).sum()} if "entropy" in output else {}


def sequence_means(values: Tensor, fields: Fields) -> Tensor:
    """Return, for each token whose weight is not 0, the mean of the values over those of its sequence.

    values: [tokens whose weight is not 0]. fields: the batch's `weights` [T] and `cu_seqlens` [N+1].
    """
    borders = fields["cu_seqlens"].to(values.device)
    sequence = torch.repeat_interleave(borders.diff().long())[fields["weights"] != 0]
    zeros = values.new_zeros(len(borders) - 1)
    sums = zeros.index_add(0, sequence, values)
    counts = zeros.index_add(0, sequence, torch.ones_like(values))
    return (sums / counts.clamp(min=1.0))[sequence]
