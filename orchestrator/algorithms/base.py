"""Estimator: turns the rewards of a whole batch into advantages; every algorithm is one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadriga.data.settings import Settings

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """The action tokens of N samples, laid end to end: what an estimator sees.

    rewards: [T], per token: minus the KL penalty, and on a sample's last token its score. values: [T], of the state in
    which the token was chosen; None without a critic. scores: [N], clipped and penalised. groups: [N], equal numbers
    for answers to the same prompt. offsets: [N+1], borders of the samples.
    """

    rewards: Float64
    values: Float64 | None
    scores: Float64
    groups: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of action tokens per sample, [N]."""
        return np.diff(self.offsets)

    def totals(self) -> Float64:
        """Return the sum of each sample's token rewards, [N]: its score minus its KL penalty."""
        number = np.repeat(np.arange(len(self.scores)), self.lengths)
        return np.bincount(number, self.rewards, len(self.scores)).astype(np.float64)

    def group_sums(self, numbers: ArrayLike) -> Float64:
        """Return, for each sample, the sum of the numbers [N] of all samples of its group, [N]."""
        return np.bincount(self.groups, np.asarray(numbers, np.float64)).astype(np.float64)[self.groups]

    def group_sizes(self) -> NDArray[np.int64]:
        """Return, for each sample, the number of samples of its group, [N]."""
        return np.bincount(self.groups)[self.groups]

    def group_means(self, numbers: ArrayLike) -> Float64:
        """Return, for each sample, the mean of the numbers [N] of its group, [N]."""
        return self.group_sums(numbers) / self.group_sizes()

    def differs(self, numbers: ArrayLike) -> NDArray[np.bool_]:
        """Return, for each sample, whether the numbers [N] of its group are not all equal, [N]."""
        numbers = np.asarray(numbers, np.float64)
        low, high = np.full(self.groups.max() + 1, np.inf), np.full(self.groups.max() + 1, -np.inf)
        np.minimum.at(low, self.groups, numbers)
        np.maximum.at(high, self.groups, numbers)
        return (high > low)[self.groups]

    def group_stats(self) -> dict[str, float]:
        """Return the numbers of groups, of groups of one sample, and of larger ones whose totals are all equal."""
        sizes = np.bincount(self.groups)
        equal = np.ones(len(sizes), bool)
        equal[self.groups] = ~self.differs(self.totals())
        single = sizes == 1
        return {
            "groups": float(len(sizes)),
            "groups_single": float(single.sum()),
            "groups_equal": float((equal & ~single).sum()),
        }

    def per_token(self, numbers: ArrayLike) -> Float64:
        """Return numbers of samples [N] on each of their tokens, [T]."""
        return np.repeat(np.asarray(numbers, np.float64), self.lengths)


@dataclass(frozen=True)
class Estimate:
    """Advantages [T]; returns [T], which the critic learns, None without one; statistics of the estimator's own."""

    advantages: Float64
    returns: Float64 | None = None
    stats: dict[str, float] = field(default_factory=dict)


class Estimator(Settings, ABC):
    """An advantage estimator and its settings: a section with `type: NAME`, or `type: module:Class` for a user's.

    needs_critic: whether it reads a critic's values. needs_group: whether it compares the answers to a prompt, which
    takes at least two.
    """

    type: str
    """Kind of estimator."""

    needs_critic: ClassVar[bool] = False
    needs_group: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, steps: Steps) -> Estimate:
        """Return the advantage of every action token of the batch."""
