"""The PPO stage: its settings."""

from typing import Literal

from pydantic import Field

from quadriga.actors.settings import ModelSettings, OptimizerSettings, SamplingSettings
from quadriga.data.settings import DataSettings
from quadriga.orchestrator.algorithms.settings import AlgorithmSettings
from quadriga.orchestrator.rewards.settings import RewardFunctionSettings, RewardModelSettings, RewardSettings
from quadriga.orchestrator.settings import StageBase


class PpoStage(StageBase):
    """PPO against a reward."""

    stage: Literal["ppo"]
    """Kind of stage."""
    policy: ModelSettings
    """Policy that training starts from."""
    reference: ModelSettings | None = None
    """Policy that KL is measured from; null takes the policy's starting weights."""
    critic: ModelSettings | None = None
    """Model that the critic starts from; null starts it from the reward model (needs `reward.type: model`)."""
    reward: RewardSettings
    """What PPO maximises: a reward model or a function."""
    prompts: DataSettings
    """Prompts to answer; each is used once per epoch."""
    prompts_per_step: int = Field(64, ge=1)
    """Number of prompts per step."""
    samples_per_prompt: int = Field(1, ge=1)
    """Number of answers per prompt."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    algorithm: AlgorithmSettings = AlgorithmSettings()
    """Numbers of PPO itself."""
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-6, schedule="constant")
    """Optimizer of the policy."""
    critic_optimizer: OptimizerSettings = OptimizerSettings(lr=9e-6, schedule="constant")
    """Optimizer of the critic."""
    gold_reward: RewardFunctionSettings | None = None
    """A second reward that training never sees (Gao et al. 2023), logged beside the first as `reward/gold`; null logs
    none."""

    @property
    def reward_path(self) -> str | None:
        """Folder of the reward model; None when the reward is a function."""
        return self.reward.path if isinstance(self.reward, RewardModelSettings) else None

    @property
    def reward_function(self) -> RewardFunctionSettings | None:
        """Function that is the reward; None when the reward is a model."""
        return self.reward if isinstance(self.reward, RewardFunctionSettings) else None
