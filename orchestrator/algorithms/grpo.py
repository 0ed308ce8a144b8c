"""GRPO: an answer's advantage is its reward against the other answers to the same prompt."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from quadriga.orchestrator.algorithms.base import Estimate, Estimator, Steps


class Grpo(Estimator):
    """Group-relative advantages (Shao et al. 2024, arXiv 2402.03300, section 4.1.2), on every token of the answer.

    (R - mean of the group) / (standard deviation of the group + epsilon), where R is the sum of the answer's token
    rewards and the deviation is that of a sample, n - 1 in the denominator. A group whose rewards are all equal, or of
    one answer, has advantage 0.
    """

    type: Literal["grpo"] = "grpo"
    """Kind of estimator."""
    epsilon: float = Field(1e-6, gt=0)
    """Amount added to the standard deviation, against the division by almost nothing."""

    needs_group: ClassVar[bool] = True

    def __call__(self, steps: Steps) -> Estimate:
        """Return the advantages, without returns for a critic."""
        totals = steps.totals()
        centred = np.where(steps.differs(totals), totals - steps.group_means(totals), 0.0)
        variance = steps.group_sums(centred**2) / np.maximum(steps.group_sizes() - 1, 1)
        return Estimate(steps.per_token(centred / (np.sqrt(variance) + self.epsilon)))
