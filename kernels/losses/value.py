"""The loss of a critic's values."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quadriga.kernels.losses.base import Fields, Head, Loss, Stats, largest, selected


@dataclass(frozen=True)
class ValueClip(Loss):
    """PPO's value loss, clipped around the old values as in ppo2 of OpenAI's baselines.

    0.5 max((v - R)^2, (v_old + clip(v - v_old, -clip, clip) - R)^2); a clip of None does not clip: 0.5 (v - R)^2.
    Output values [T]; fields old_values, returns and weights, [T] each.
    """

    clip: float | None = 0.2
    head: ClassVar[Head] = "values"
    fields: ClassVar[tuple[str, ...]] = ("old_values", "returns", "weights")

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        values, old, returns, weights = (
            selected(x, fields["weights"])
            for x in (output["values"], fields["old_values"], fields["returns"], fields["weights"])
        )
        free = (values - returns).square()
        clipped = free
        if self.clip is not None:
            clipped = (old + (values - old).clamp(-self.clip, self.clip) - returns).square()
        loss = 0.5 * (torch.maximum(free, clipped) * weights).sum()
        with torch.no_grad():
            return loss, {
                "loss": loss.detach(),
                "clip_fraction": (clipped > free).float().sum(),
                "squared_error": free.sum(),
                "value": values.sum(),
                "value_min": -largest(-values),
                "value_max": largest(values),
            }
