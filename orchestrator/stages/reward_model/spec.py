"""The reward-model stage: its settings and its StageSpec."""

from typing import Literal

from pydantic import Field

from quadriga.data.settings import DataSettings
from quadriga.orchestrator.settings import TrainStage
from quadriga.orchestrator.stages.base import StageData, SupervisedSpec


class RewardStage(TrainStage):
    """A reward model from ranked answers: all pairs of a prompt in one batch element."""

    stage: Literal["reward"]
    """Kind of stage."""
    head_std: float | None = Field(None, ge=0)
    """Standard deviation of a fresh head's weights; null takes 1 / sqrt(hidden size + 1) (Stiennon et al. 2020)."""
    demonstrations: DataSettings | None = None
    """Demonstrations whose mean score is calibrated to 0 (the shift is saved with the model); null takes the training
    answers."""


class RewardModelSpec(SupervisedSpec[RewardStage]):
    """A stage that trains a scorer on rankings."""

    def datasets(self, settings: RewardStage) -> list[StageData]:
        """Return rankings, and the demonstrations that are calibrated to 0."""
        rows = super().datasets(settings)
        if settings.demonstrations is not None:
            loader = "quadriga.data.loading.datasets:load_demonstrations"
            rows.append(StageData(settings.demonstrations, "demonstrations", loader))
        return rows

    def longest_element(self, settings: RewardStage) -> tuple[list[int], str]:
        """Return four answers, as most rankings have no more."""
        return [settings.data.max_tokens] * 4, "sequence"


REWARD = RewardModelSpec(
    settings=RewardStage,
    trainer="quadriga.orchestrator.stages.reward_model.trainer:Reward",
    loader="quadriga.data.loading.datasets:load_rankings",
    outputs={"reward": "export/reward"},
    role="reward",
    head="scalar",
)
