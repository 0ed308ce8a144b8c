"""RLOO: an answer's baseline is the mean reward of the other answers to its prompt."""

from typing import ClassVar, Literal

import numpy as np

from quadriga.orchestrator.algorithms.base import Estimate, Estimator, Steps


class Rloo(Estimator):
    """Leave-one-out advantages (Ahmadian et al. 2024, arXiv 2402.14740, section 3.2), on every token of the answer.

    R - mean of the other answers' R, where R is the sum of the answer's token rewards. A group whose rewards are all
    equal, or of one answer, has advantage 0.
    """

    type: Literal["rloo"] = "rloo"
    """Kind of estimator."""

    needs_group: ClassVar[bool] = True

    def __call__(self, steps: Steps) -> Estimate:
        """Return the advantages, without returns for a critic."""
        totals, others = steps.totals(), np.maximum(steps.group_sizes() - 1, 1)
        baseline = (steps.group_sums(totals) - totals) / others
        return Estimate(steps.per_token(np.where(steps.differs(totals), totals - baseline, 0.0)))
