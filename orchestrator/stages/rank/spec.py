"""The ranking stage: its settings."""

from typing import Annotated, Literal

from pydantic import Field

from quadriga.actors.settings import ModelSettings, SamplingSettings
from quadriga.data.registry import Choice
from quadriga.data.settings import DataSettings
from quadriga.orchestrator.rewards.base import RewardSettings
from quadriga.orchestrator.rewards.registry import REWARDS
from quadriga.orchestrator.settings import StageBase


class RankStage(StageBase):
    """Sample several answers per prompt from the current policy and have them ranked."""

    stage: Literal["rank"]
    """Kind of stage."""
    policy: ModelSettings
    """Policy that answers."""
    prompts: DataSettings
    """Prompts to answer."""
    answers_per_prompt: tuple[int, int] = (4, 9)
    """Smallest and largest number of answers per prompt; the number is drawn for each prompt."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    annotator: Annotated[RewardSettings, Choice(REWARDS)]
    """Reward that scores every answer; answers closer than `tie_margin` are tied."""
    tie_margin: float = Field(1e-6, ge=0)
    """Difference of scores up to which two answers are tied."""
    earlier_rankings: list[str] = []
    """Files of rankings of earlier rounds, mixed in."""
    round: int = Field(1, ge=1)
    """Repetition of the recipe that the answers belong to; every ranking is marked with it."""
