"""The rewards by the name in `type`: of `reward`, `gold_reward`, `annotator` and an evaluation's `gold_reward`."""

from quadriga.data.registry import Registry
from quadriga.orchestrator.rewards.base import RewardSettings
from quadriga.orchestrator.rewards.function import RewardFunctionSettings
from quadriga.orchestrator.rewards.model import RewardModelSettings

REWARDS: Registry[type[RewardSettings]] = Registry(
    "a reward", RewardSettings, {"model": RewardModelSettings, "function": RewardFunctionSettings}
)
