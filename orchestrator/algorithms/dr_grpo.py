"""Dr. GRPO: GRPO without the division by the deviation, which favours prompts that are easy or hopeless."""

from typing import ClassVar, Literal

import numpy as np

from quadriga.orchestrator.algorithms.base import Estimate, Estimator, Steps


class DrGrpo(Estimator):
    """Centred rewards (Liu et al. 2025, arXiv 2503.20783, section 3.2), on every token of the answer.

    R - mean of the group, where R is the sum of the answer's token rewards. The paper's loss goes with it:
    `algorithm.aggregation: constant`. A group whose rewards are all equal, or of one answer, has advantage 0.
    """

    type: Literal["dr_grpo"] = "dr_grpo"
    """Kind of estimator."""

    needs_group: ClassVar[bool] = True

    def __call__(self, steps: Steps) -> Estimate:
        """Return the advantages, without returns for a critic."""
        totals = steps.totals()
        return Estimate(steps.per_token(np.where(steps.differs(totals), totals - steps.group_means(totals), 0.0)))
