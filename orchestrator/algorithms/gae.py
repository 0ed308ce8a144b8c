"""GAE: advantages from a critic, as in PPO."""

from typing import ClassVar, Literal

from pydantic import Field

from quadriga.kernels.gae import segmented_gae
from quadriga.orchestrator.algorithms.base import Estimate, Estimator, Steps
from quadriga.orchestrator.algorithms.whitening import whiten


class Gae(Estimator):
    """Generalised advantage estimation (Schulman et al. 2016), nothing bootstrapped after the last token."""

    type: Literal["gae"] = "gae"
    """Kind of estimator."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda: 1 has no bias from the critic, 0 the least variance."""
    whiten_rewards: bool = False
    """Whether token rewards are scaled to variance 1 over the batch, their mean kept."""
    whiten_advantages: bool = True
    """Whether advantages are shifted to mean 0 and scaled to variance 1 over the batch."""

    needs_critic: ClassVar[bool] = True

    def __call__(self, steps: Steps) -> Estimate:
        """Return advantages and returns; the statistics are those before whitening."""
        assert steps.values is not None
        rewards = whiten(steps.rewards, shift_mean=False) if self.whiten_rewards else steps.rewards
        advantages, returns = segmented_gae(rewards, steps.values, steps.offsets, self.gamma, self.lam)
        stats = {"advantage_mean": float(advantages.mean()), "advantage_std": float(advantages.std())}
        return Estimate(whiten(advantages) if self.whiten_advantages else advantages, returns, stats)
