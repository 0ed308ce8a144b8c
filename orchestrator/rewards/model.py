"""A reward model on the cluster as reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quadriga.data.errors import UserError
from quadriga.data.model_path import ModelPath
from quadriga.data.records import Sample
from quadriga.data.registry import import_object
from quadriga.orchestrator.rewards.base import PendingScores, Reward, RewardContext, RewardSettings, Scores


class RewardModelSettings(RewardSettings):
    """A reward model: sequence classification with one label."""

    type: Literal["model"]
    """Kind of reward."""
    path: ModelPath
    """Folder of the reward model, for example `runs/my-rm/export/reward`."""

    @property
    def model_path(self) -> str | None:
        """The folder."""
        return self.path

    def start(self, context: RewardContext) -> Reward:
        """Return the reward; the model runs in the role `reward`. Raises UserError where no model runs."""
        if context.groups is None:
            raise UserError(f"A reward of type `model` cannot be used here: for `{context.phase}` no model is started.")
        return ModelReward(context.groups, self.path)


class ModelReward(Reward):
    """The shifted score of the reward model in the role `reward`: demonstrations score 0 on average."""

    def __init__(self, groups: Mapping[str, Any], path: str):
        self.groups, self.version = groups, path
        # By its name: settings, which this file defines, must load without what reads model folders.
        self.shift: float = import_object("quadriga.actors.model.folder:reward_shift")(path)

    def start(self, samples: list[Sample]) -> PendingScores:
        """Begin to score; the model works while the caller does something else."""
        pending = self.groups["reward"].forward_scores([sample.token_ids for sample in samples], "score")
        return _Shifted(pending, self.shift)


@dataclass(frozen=True)
class _Shifted:
    pending: Any
    shift: float

    def result(self) -> Scores:
        values: list[float | None] = [score - self.shift for score in self.pending.result()]
        return Scores(values, [{} for _ in values], 0)
