"""One interface for what scores answers. An error is never a zero."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quadriga.data.errors import UserError
from quadriga.data.records import Sample
from quadriga.data.settings import Settings


@dataclass(frozen=True)
class Scores:
    """One score per sample, None where it could not be had, and the number of failures.

    parts: named numbers of each sample, for the metrics; `score` may be among them. texts: what else a reward gave, by
    name, for the table of samples; empty when it gave nothing else.
    """

    values: list[float | None]
    parts: list[dict[str, float]]
    errors: int
    texts: list[dict[str, str]] = field(default_factory=list)


class PendingScores(Protocol):
    """Scores under way."""

    def result(self) -> Scores:
        """Wait for them."""
        ...


class Reward(ABC):
    """Scores answers.

    version: which reward this is; every sample is marked with it.
    """

    version: str

    @abstractmethod
    def start(self, samples: list[Sample]) -> PendingScores:
        """Begin to score; return at once where that is possible, so that other passes run meanwhile."""

    def close(self) -> None:
        """Release what `RewardSettings.start` created; by default nothing."""
        return None


@dataclass(frozen=True)
class RewardContext:
    """What a reward may use. phase: part of the step that it works for, `score`, `gold` or `rank`.

    log: file for its output, None for standard error. groups: role -> `ActorGroup` of the stage's models; groups are
    replaced when a process is lost, so look them up when they are used.
    """

    phase: str
    log: Path | None = None
    groups: Mapping[str, Any] | None = None


class RewardSettings(Settings, ABC):
    """A reward and its settings: a section with `type: NAME`, or `type: module:Class` for a user's."""

    type: str
    """Kind of reward."""

    @property
    def model_path(self) -> str | None:
        """Folder of the reward model that must run in the role `reward`; None without one."""
        return None

    def check(self) -> str | None:
        """Check before the run that the reward can start; return a line for `quadriga doctor`, None without a finding.

        Raises UserError, with a sentence, if it cannot.
        """
        return None

    @abstractmethod
    def start(self, context: RewardContext) -> Reward:
        """Return the reward, ready to score."""


def require_no_model(reward: RewardSettings | None, key: str) -> None:
    """Raise UserError for a reward that needs a model where none is started. key: where the config names it."""
    if reward is not None and reward.model_path is not None:
        raise UserError(
            f"`{key}.type: {reward.type}` needs a reward model in processes of its own, and only `reward` of a PPO "
            "stage has them. Take a function, or a reward without a model."
        )


@dataclass(frozen=True)
class ReadyScores:
    """Scores that are there already."""

    scores: Scores

    def result(self) -> Scores:
        """Return them."""
        return self.scores
