"""KL between policy and reference: per-token estimates, and the coefficient of the penalty."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadriga.orchestrator.algorithms.settings import KLSettings

Float64 = NDArray[np.float64]
K3_RANGE = 20.0
"""Largest log ratio, in nats, that k3 tells from larger ones."""


def kl_penalty(logprobs: ArrayLike, ref_logprobs: ArrayLike, estimator: str) -> Float64:
    """Estimate KL(policy || reference) per token from tokens of the policy (Schulman 2020, "Approximating KL").

    With x = log policy - log reference: k1 = x (unbiased, may be negative), k2 = x²/2 (biased, never negative),
    k3 = exp(-x) - 1 + x (unbiased, never negative). In nats. For k3, x is clamped to ±20, where its exponential would
    soon leave all other tokens no weight, and overflow.
    """
    x = np.asarray(logprobs, np.float64) - np.asarray(ref_logprobs, np.float64)
    match estimator:
        case "k1":
            return x
        case "k2":
            return 0.5 * x**2
        case "k3":
            x = x.clip(-K3_RANGE, K3_RANGE)
            return np.expm1(-x) + x
        case _:
            raise ValueError(f"unknown KL estimator {estimator!r}; choose k1, k2 or k3")


class KLController:
    """The coefficient of the KL penalty: fixed, or following a target (Ziegler et al. 2019, section 2.2).

    After a batch of n samples with mean KL per sample `kl`: error = clip(kl / target - 1, -0.2, 0.2);
    coefficient *= 1 + error * n / horizon.
    """

    def __init__(self, settings: KLSettings):
        self.settings = settings
        self.coefficient = settings.coefficient

    def update(self, kl_per_sample: float, samples: int) -> None:
        """Adapt to a batch that was just trained on; kl_per_sample in nats, summed over an answer's tokens."""
        if (adaptive := self.settings.adaptive) is not None:
            error = min(0.2, max(-0.2, kl_per_sample / adaptive.target - 1.0))
            self.coefficient *= 1.0 + error * samples / adaptive.horizon

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint. A fixed coefficient stays the settings', which may be changed on purpose."""
        if self.settings.adaptive is not None:
            self.coefficient = state["coefficient"]
