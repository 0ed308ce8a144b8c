"""The reward-model stage: its settings."""

from typing import Literal

from pydantic import Field

from quadriga.data.settings import DataSettings
from quadriga.orchestrator.settings import TrainStage


class RewardStage(TrainStage):
    """A reward model from ranked answers: all pairs of a prompt in one batch element."""

    stage: Literal["reward"]
    """Kind of stage."""
    head_std: float | None = Field(None, ge=0)
    """Standard deviation of a fresh head's weights; null takes 1 / sqrt(hidden size + 1) (Stiennon et al. 2020)."""
    demonstrations: DataSettings | None = None
    """Demonstrations whose mean score is calibrated to 0 (the shift is saved with the model); null takes the training
    answers."""
