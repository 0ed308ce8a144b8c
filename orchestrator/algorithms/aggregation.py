"""Aggregation: how the losses of tokens become the loss of a batch, as a weight per token and units per sample."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Aggregation = Literal["token", "sequence", "constant"]


def token_weights(
    action_masks: Sequence[ArrayLike], aggregation: Aggregation, limit: int
) -> tuple[list[NDArray[np.float32]], list[float]]:
    """Return the column `weights` over response tokens, and each sample's units; the sums of units are the divisors.

    token: the mean over all action tokens of the optimizer step (Schulman et al. 2017). sequence: the mean over samples
    of their token means (Shao et al. 2024, arXiv 2402.03300, equation 3). constant: the sum over tokens, divided by the
    number of samples and by `limit`, the longest answer, so that no length is favoured (Liu et al. 2025, arXiv
    2503.20783).
    """
    masks = [np.asarray(mask, np.float32) for mask in action_masks]
    match aggregation:
        case "token":
            return masks, [float(mask.sum()) for mask in masks]
        case "sequence":
            return [mask / max(1.0, float(mask.sum())) for mask in masks], [1.0] * len(masks)
        case "constant":
            return [mask / np.float32(limit) for mask in masks], [1.0] * len(masks)
