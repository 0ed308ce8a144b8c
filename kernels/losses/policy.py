"""Surrogates of the policy gradient."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quadriga.kernels.losses.base import Fields, Head, Loss, Stats, entropy_sum, largest, selected


@dataclass(frozen=True)
class PolicyClip(Loss):
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), to be minimised.

    With r = exp(logprob - old_logprob): -min(r A, clip(r, 1 - clip, 1 + clip) A).
    Output logprobs [T] (and entropy [T], for the statistics); fields old_logprobs, advantages and weights, [T] each.
    Statistics: `clip_fraction` counts tokens whose gradient the clip removed; `approx_kl` is r - 1 - log r, the
    estimate k3 of KL(old || new) (Schulman 2020).
    """

    clip: float = 0.2
    head: ClassVar[Head] = "logprobs"
    fields: ClassVar[tuple[str, ...]] = ("old_logprobs", "advantages", "weights")

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        new, old, advantages, weights = (
            selected(x, fields["weights"])
            for x in (output["logprobs"], fields["old_logprobs"], fields["advantages"], fields["weights"])
        )
        log_ratio = new - old
        ratio = log_ratio.exp()
        free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = (torch.maximum(free, clipped) * weights).sum()
        with torch.no_grad():
            stats = {
                "loss": loss.detach(),
                "clip_fraction": (clipped > free).float().sum(),
                "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum(),
                "ratio": ratio.sum(),
                "ratio_min": -largest(-ratio),
                "ratio_max": largest(ratio),
                "log_ratio_max": largest(log_ratio.abs()),
            }
        return loss, stats | entropy_sum(output, fields["weights"])
