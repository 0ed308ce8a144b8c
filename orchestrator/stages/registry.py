"""The stages by name."""

from typing import Any

from quadriga.data.errors import UserError, nearest
from quadriga.data.registry import Registry
from quadriga.orchestrator.pipeline_settings import PipelineStage
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.base import StageSpec
from quadriga.orchestrator.stages.ppo.spec import PPO
from quadriga.orchestrator.stages.pretrain.spec import PRETRAIN
from quadriga.orchestrator.stages.rank.spec import RANK
from quadriga.orchestrator.stages.reward_model.spec import REWARD
from quadriga.orchestrator.stages.sft.spec import SFT

STAGES: Registry[StageSpec[Any]] = Registry(
    "a stage",
    StageSpec,
    {"pretrain": PRETRAIN, "sft": SFT, "reward": REWARD, "ppo": PPO, "rank": RANK},
)
"""`stage:` value -> its StageSpec; a stage of the user's own is named as `module:SPEC`."""

AnyStage = StageBase | PipelineStage
"""Settings of what a config file can hold."""


def spec_of(stage: StageBase) -> StageSpec[Any]:
    """Return the StageSpec of a stage. Raises UserError if there is none of that name."""
    return spec_named(stage.stage)


def spec_named(name: str) -> StageSpec[Any]:
    """Return the StageSpec that a `stage:` value stands for. Raises UserError if there is none of that name."""
    try:
        return STAGES.find(name)
    except KeyError:
        raise UserError(f"`stage: {name}` is not a stage{nearest(name, STAGES)}") from None
    except ValueError as error:
        raise UserError(f"`stage: {name}` cannot be used: {error}.") from None
