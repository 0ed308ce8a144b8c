"""The PPO stage: its settings."""

from typing import Annotated, Literal

from pydantic import Field

from quadriga.actors.settings import ModelSettings, OptimizerSettings, SamplingSettings
from quadriga.data.registry import Choice
from quadriga.data.settings import DataSettings
from quadriga.orchestrator.algorithms.settings import AlgorithmSettings
from quadriga.orchestrator.rewards.base import RewardSettings
from quadriga.orchestrator.rewards.registry import REWARDS
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
    reward: Annotated[RewardSettings, Choice(REWARDS)]
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
    gold_reward: Annotated[RewardSettings, Choice(REWARDS)] | None = None
    """A second reward that training never sees (Gao et al. 2023), logged beside the first as `reward/gold`; null logs
    none."""

    @property
    def reward_path(self) -> str | None:
        """Folder of the reward model; None when the reward is not a model."""
        return self.reward.model_path
