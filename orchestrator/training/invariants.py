"""Run-time checks of training. Each is fatal: a silently wrong number costs more than a stopped run."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from quadriga.data.errors import Fault
from quadriga.data.records import Sample, Tokens

LOGPROB_TOLERANCE = 1e-4
"""Largest |log p(engine) - log p(trainer)| of a token in float32."""
LOGPROB_MEAN_TOLERANCE = 0.05
"""Largest mean of the same in bfloat16, where logits are up to 1/8 apart: single tokens may differ more."""
LOGPROB_OUTLIER = 0.1
"""Difference from which a token is counted as an outlier."""
RATIO_TOLERANCE = 1e-4
"""Largest |log ratio| of a token on the first on-policy minibatch in float32: only rounding may differ."""
RATIO_MEAN_TOLERANCE = 0.05
"""Largest mean of the same in bfloat16, where micro-batches of another shape round otherwise."""
KL_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
"""Largest mean |KL| per token while policy and reference are the same weights."""


def engine_agrees(rollout: Sequence[ArrayLike], trainer: Sequence[ArrayLike], dtype: str) -> dict[str, float]:
    """Compare the rollout engine's log-probs with the trainer's, token by token.

    Returns mean and max |difference|, and the share of tokens above LOGPROB_OUTLIER. Raises Fault when they are of
    different weights.
    """
    difference = np.abs(
        np.concatenate(
            [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in zip(rollout, trainer, strict=True)]
        )
    )
    largest, mean = float(difference.max()), float(difference.mean())
    # Written so that nan, which compares as false, does not agree.
    agrees = largest <= LOGPROB_TOLERANCE if dtype == "float32" else mean <= LOGPROB_MEAN_TOLERANCE
    if not agrees:
        raise Fault(
            f"The rollout engine's log-probs differ from the trainer's by up to {largest:.2g} (mean {mean:.2g}): the "
            "engine does not hold the weights that are being trained. The last sync left something out, or sampling "
            "settings differ from those the trainer computes with.",
            phase="old_logprobs",
        )
    outliers = float((difference > LOGPROB_OUTLIER).mean())
    return {
        "rollout/logprob_diff_max": largest,
        "rollout/logprob_diff_mean": mean,
        "rollout/logprob_outliers": outliers,
    }


def first_ratio_is_one(log_ratio_max: float, log_ratio_mean: float, dtype: str) -> None:
    """Check that new and old log-probs agree on the first minibatch after sampling: they come from the same weights.

    Raises Fault when a ratio is not 1; in bfloat16, when they are not 1 on average.
    """
    sound = log_ratio_max <= RATIO_TOLERANCE if dtype == "float32" else log_ratio_mean <= RATIO_MEAN_TOLERANCE
    if not sound:  # also for nan
        raise Fault(
            f"On the first on-policy minibatch a probability ratio is off 1 by {log_ratio_max:.2g} in log (mean "
            f"{log_ratio_mean:.2g}): the old log-probs were not computed as the update computes them.",
            phase="update",
        )


def start_kl_is_zero(kl: float, dtype: str) -> None:
    """Check that KL is 0 before the first update of a policy that starts as its own reference.

    Raises Fault when it is not.
    """
    if not abs(kl) <= KL_TOLERANCE[dtype]:
        raise Fault(
            f"KL between policy and reference is {kl:.2g} per token before the first update, though both start from "
            "the same weights: one of the two was loaded or computed differently.",
            phase="reference",
        )


def served_by(samples: Sequence[Sample], version: int) -> None:
    """Check that every token of a synchronous step was drawn by the current policy.

    Raises Fault naming the first sample with another version.
    """
    for sample in samples:
        for other in sample.versions:
            if other != version:
                raise Fault(f"Sample {sample.id} was drawn by policy version {other}, not {version}", phase="generate")


def eos_is_learned(rows: Sequence[Tokens], eos: Sequence[int]) -> None:
    """Check that some token that ends an answer is inside the loss mask of the demonstrations.

    Raises Fault when none is: the model would never learn to stop.
    """
    if not any(mask and token in eos for row in rows for token, mask in zip(row.token_ids, row.loss_mask, strict=True)):
        raise Fault(
            "No demonstration has its end token inside the loss mask, so the model would never learn to stop. Check "
            "that the chat template ends assistant messages with an end token.",
            phase="data",
        )
