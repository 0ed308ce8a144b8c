"""REINFORCE++: returns per token without a critic, normalised over the whole batch."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from quadriga.kernels.gae import segmented_gae
from quadriga.orchestrator.algorithms.base import Estimate, Estimator, Steps
from quadriga.orchestrator.algorithms.whitening import whiten


class ReinforcePlusPlus(Estimator):
    """Discounted sums of the token rewards still to come, whitened (Hu et al. 2025, arXiv 2501.03262, section 3)."""

    type: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    """Kind of estimator."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""

    def __call__(self, steps: Steps) -> Estimate:
        """Return the advantages, without returns for a critic."""
        # With values of 0 and lambda 1, GAE is the discounted sum.
        zeros = np.zeros_like(steps.rewards)
        return _whitened(segmented_gae(steps.rewards, zeros, steps.offsets, self.gamma, 1.0)[0])


class ReinforcePlusPlusBaseline(Estimator):
    """R minus the mean of the group, on every token, whitened over the batch (Hu et al. 2025, section 3).

    R is the sum of the answer's token rewards; the paper puts KL into the loss (`parts: [{type: kl, estimator: k2}]`).
    A group whose rewards are all equal, or of one answer, is centred at 0 before the whitening.
    """

    type: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    """Kind of estimator."""

    needs_group: ClassVar[bool] = True

    def __call__(self, steps: Steps) -> Estimate:
        """Return the advantages, without returns for a critic."""
        totals = steps.totals()
        centred = np.where(steps.differs(totals), totals - steps.group_means(totals), 0.0)
        return _whitened(steps.per_token(centred))


def _whitened(advantages: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Estimate:
    """Return whitened advantages, with the statistics of before."""
    stats = {"advantage_mean": float(advantages.mean()), "advantage_std": float(advantages.std())}
    return Estimate(whiten(advantages), None, stats)
