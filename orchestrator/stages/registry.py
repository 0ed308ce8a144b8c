"""The stages by name."""

from typing import Annotated

from pydantic import Field

from quadriga.orchestrator.pipeline_settings import PipelineStage
from quadriga.orchestrator.stages.ppo.spec import PpoStage
from quadriga.orchestrator.stages.pretrain.spec import PretrainStage
from quadriga.orchestrator.stages.rank.spec import RankStage
from quadriga.orchestrator.stages.reward_model.spec import RewardStage
from quadriga.orchestrator.stages.sft.spec import SftStage

GeneratingStage = PpoStage | RankStage
"""A stage that has vLLM engines."""


Stage = Annotated[
    PretrainStage | SftStage | RewardStage | PpoStage | RankStage | PipelineStage, Field(discriminator="stage")
]
