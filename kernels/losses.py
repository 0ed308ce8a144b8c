"""Losses that model workers minimise.

A loss returns the *sum* over its units (tokens of the mask, or prompts with ranked answers) and sums of statistics. The
caller divides by the number of units over every rank and micro-batch of the optimizer step, so that a token weighs the
same in whatever micro-batch it is. This is the token mean: long answers weigh more than short ones (a mean of sequence
means would weigh each token of a short answer more). Sums are taken in float32; masks hold 0 or 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Fields = dict[str, Tensor]
Stats = dict[str, Tensor]
Head = Literal["logprobs", "values", "scores"]


class Loss(Protocol):
    """A loss over one micro-batch.

    head: the output of the model that is read. fields: names of the batch fields that are read.
    """

    head: ClassVar[Head]
    fields: ClassVar[tuple[str, ...]]

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        """Return the sum over the units, with gradient, and statistics without.

        Statistics are sums over the units, but extremes where a name ends in `_max` or `_min` (-inf or inf if there is
        no unit); `kernels.statistics` reduces them.
        """
        ...


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Negative log-likelihood of the masked tokens: -log p(token).

    Output logprobs [T] (and entropy [T], for the statistics); field mask [T].
    """

    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("mask",)

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        loss = -_masked(output["logprobs"], fields["mask"]).sum()
        return loss, {"loss": loss.detach()} | _entropy(output, fields["mask"])


@dataclass(frozen=True)
class PolicyClip:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), to be minimised.

    With r = exp(logprob - old_logprob): -min(r A, clip(r, 1 - clip, 1 + clip) A).
    Output logprobs [T] (and entropy [T], for the statistics); fields old_logprobs, advantages and mask, [T] each.
    Statistics: `clip_fraction` counts tokens whose gradient the clip removed; `approx_kl` is r - 1 - log r, the
    estimate k3 of KL(old || new) (Schulman 2020).
    """

    clip: float = 0.2
    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("old_logprobs", "advantages", "mask")

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        new, old, advantages = (
            _masked(x, fields["mask"]) for x in (output["logprobs"], fields["old_logprobs"], fields["advantages"])
        )
        log_ratio = new - old
        ratio = log_ratio.exp()
        free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = torch.maximum(free, clipped).sum()
        with torch.no_grad():
            stats = {
                "loss": loss.detach(),
                "clip_fraction": (clipped > free).float().sum(),
                "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum(),
                "ratio": ratio.sum(),
                "ratio_min": -_largest(-ratio),
                "ratio_max": _largest(ratio),
                "log_ratio_max": _largest(log_ratio.abs()),
            }
        return loss, stats | _entropy(output, fields["mask"])


@dataclass(frozen=True)
class ValueClip:
    """PPO's value loss, clipped around the old values as in ppo2 of OpenAI's baselines.

    0.5 max((v - R)^2, (v_old + clip(v - v_old, -clip, clip) - R)^2); a clip of None does not clip: 0.5 (v - R)^2.
    Output values [T]; fields old_values, returns and mask, [T] each.
    """

    clip: float | None = 0.2
    head: ClassVar[Head] = "values"
    fields: ClassVar[tuple[str, ...]] = ("old_values", "returns", "mask")

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        values, old, returns = (
            _masked(x, fields["mask"]) for x in (output["values"], fields["old_values"], fields["returns"])
        )
        free = (values - returns).square()
        clipped = free
        if self.clip is not None:
            clipped = (old + (values - old).clamp(-self.clip, self.clip) - returns).square()
        loss = 0.5 * torch.maximum(free, clipped).sum()
        with torch.no_grad():
            return loss, {
                "loss": loss.detach(),
                "clip_fraction": (clipped > free).float().sum(),
                "squared_error": free.sum(),
                "value": values.sum(),
                "value_min": -_largest(-values),
                "value_max": _largest(values),
            }


@dataclass(frozen=True)
class Ranking:
    """Pairwise loss of ranked answers, all pairs of a prompt together (Ouyang et al. 2022, equation 1).

    Per prompt, the mean over its comparisons of -log sigmoid(score of the better - score of the worse). Tied answers
    are not compared; K answers without ties make K(K-1)/2 comparisons. Every prompt weighs the same, however many
    answers it has; one with only tied answers adds nothing.
    Output scores [N]; fields group [N] (equal numbers: one prompt, whole in this micro-batch) and rank [N] (0 is best).
    Statistics: `accuracy` (equal scores are half right) and `margin`, per prompt the mean over its comparisons;
    `pairs`, the number of comparisons.
    """

    head: ClassVar[Head] = "scores"
    fields: ClassVar[tuple[str, ...]] = ("group", "rank")

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        scores = output["scores"].float()
        better, worse, weight = self._pairs(fields)
        margin = scores[better] - scores[worse]
        loss = -(logsigmoid(margin) * weight).sum()
        with torch.no_grad():
            return loss, {
                "loss": loss.detach(),
                "accuracy": (torch.heaviside(margin, margin.new_tensor(0.5)) * weight).sum(),
                "margin": (margin * weight).sum(),
                "pairs": torch.tensor(float(len(margin)), device=scores.device),
                "score_min": -_largest(-scores),
                "score_max": _largest(scores),
            }

    @staticmethod
    def _pairs(fields: Fields) -> tuple[Tensor, Tensor, Tensor]:
        """Return, per comparison, the indices of the better and worse answer and 1 / comparisons of the prompt."""
        group, rank = fields["group"], fields["rank"]
        better, worse = ((group[:, None] == group) & (rank[:, None] < rank)).nonzero(as_tuple=True)
        _, prompt, counts = torch.unique(group[better], return_inverse=True, return_counts=True)
        return better, worse, 1.0 / counts[prompt].float()


LOSSES: dict[str, Callable[..., Loss]] = {
    "nll": NegativeLogLikelihood,
    "policy_clip": PolicyClip,
    "value_clip": ValueClip,
    "ranking": Ranking,
}


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """Return the masked tokens in float32. Multiplying by the mask instead would let nan outside of it through."""
    return values[mask.bool()].float()


def _largest(values: Tensor) -> Tensor:
    """Return the maximum, -inf if there are no values."""
    return values.max() if values.numel() else values.new_tensor(-torch.inf)


def _entropy(output: Fields, mask: Tensor) -> Stats:
    """Return the summed entropy of the masked tokens, if the model gave one."""
    return {"entropy": _masked(output["entropy"].detach(), mask).sum()} if "entropy" in output else {}
