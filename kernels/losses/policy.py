"""Surrogates of the policy gradient."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quadriga.kernels.losses.base import (
    Fields,
    Head,
    Loss,
    Stats,
    entropy_sum,
    k3_estimate,
    largest,
    selected,
    sequence_means,
)


@dataclass(frozen=True)
class PolicyClip(Loss):
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), to be minimised.

    With r = exp(logprob - old_logprob): -min(r A, clip(r, 1 - clip, 1 + clip_high) A). clip_high: None takes `clip`;
    larger, it lets unlikely tokens grow (Yu et al. 2025, arXiv 2503.14476, section 3.1). dual_clip: where A is
    negative, the loss is at most -dual_clip A (Ye et al. 2020, arXiv 1912.09729, equation 5); None does not limit it.
    ratio: `sequence` takes the geometric mean of a sequence's ratios for each of its tokens (Zheng et al. 2025, arXiv
    2507.18071, equation 7).
    Output logprobs [T] (and entropy [T], for the statistics); fields old_logprobs, advantages and weights, [T] each.
    unmoved: the weights are still those that sampled, so old log-probs are the new ones, to the bit, and r is 1.
    Statistics: `clip_fraction` counts tokens whose gradient a clip removed; `approx_kl` is r - 1 - log r of the tokens'
    own ratios, the estimate k3 of KL(old || new) (Schulman 2020). It and `log_ratio`, |log r|, are of the old log-probs
    given, also with `unmoved`.
    """

    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    ratio: Literal["token", "sequence"] = "token"
    unmoved: bool = False
    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("old_logprobs", "advantages", "weights")

    def of_unmoved_weights(self) -> Loss:
        """Return this loss with a ratio that is 1."""
        return replace(self, unmoved=True)

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        new, old, advantages, weights = _columns(output, fields)
        of_tokens = new - old
        log_ratio = new - new.detach() if self.unmoved else of_tokens
        if self.ratio == "sequence":
            log_ratio = sequence_means(log_ratio, fields)
        ratio = log_ratio.exp()
        high = self.clip if self.clip_high is None else self.clip_high
        free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - self.clip, 1 + high)
        each = torch.maximum(free, clipped)
        removed = clipped > free
        if self.dual_clip is not None:
            limit = -advantages * self.dual_clip
            removed = removed | ((advantages < 0) & (each > limit))
            each = torch.where(advantages < 0, torch.minimum(each, limit), each)
        loss = (each * weights).sum()
        with torch.no_grad():
            return loss, {"loss": loss.detach(), "clip_fraction": removed.float().sum()} | _ratio_stats(
                ratio, of_tokens
            ) | entropy_sum(output, fields["weights"])


@dataclass(frozen=True)
class Cispo(Loss):
    """CISPO: the policy gradient with a clipped importance weight (MiniMax 2025, arXiv 2506.13585, equation 4).

    -stop_gradient(clip(r, 1 - clip_low, 1 + clip_high)) A logprob: every token keeps a gradient. clip_low: None has no
    lower limit. Output, fields and statistics as of `PolicyClip`; `clip_fraction` counts clipped weights.
    """

    clip_low: float | None = None
    clip_high: float = 0.2
    unmoved: bool = False
    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("old_logprobs", "advantages", "weights")

    def of_unmoved_weights(self) -> Loss:
        """Return this loss with a ratio that is 1."""
        return replace(self, unmoved=True)

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        new, old, advantages, weights = _columns(output, fields)
        log_ratio = (new - old).detach()
        ratio = torch.ones_like(log_ratio) if self.unmoved else log_ratio.exp()
        clipped = ratio.clamp(0.0 if self.clip_low is None else 1 - self.clip_low, 1 + self.clip_high)
        loss = (-clipped * advantages * new * weights).sum()
        stats = {"loss": loss.detach(), "clip_fraction": (clipped != ratio).float().sum()}
        return loss, stats | _ratio_stats(ratio, log_ratio) | entropy_sum(output, fields["weights"])


def _columns(output: Fields, fields: Fields) -> tuple[Tensor, ...]:
    """Return new and old log-probs, advantages and weights of the tokens whose weight is not 0."""
    columns = (output["logprobs"], fields["old_logprobs"], fields["advantages"], fields["weights"])
    return tuple(selected(column, fields["weights"]) for column in columns)


def _ratio_stats(ratio: Tensor, log_ratio: Tensor) -> Stats:
    """Return the statistics of ratios, and of the tokens' own log ratios."""
    with torch.no_grad():
        return {
            "approx_kl": k3_estimate(-log_ratio).sum(),
            "ratio": ratio.sum(),
            "ratio_min": -largest(-ratio),
            "ratio_max": largest(ratio),
            "log_ratio": log_ratio.abs().sum(),
            "log_ratio_max": largest(log_ratio.abs()),
        }
