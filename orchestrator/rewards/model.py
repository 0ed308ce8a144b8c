"""A reward model as reward."""

from dataclasses import dataclass

from quadriga.actors.model.group import ActorGroup, Pending
from quadriga.data.records import Sample
from quadriga.orchestrator.rewards.base import PendingScores, Scores


class ModelReward:
    """A reward model's score at an answer's last token: logit - reward_shift."""

    def __init__(self, group: ActorGroup, shift: float, version: str):
        self.group, self.shift, self.version = group, shift, version

    def start(self, samples: list[Sample]) -> PendingScores:
        """Send the token ids as they are: token in, token out."""
        return _ModelScores(self.group.forward_scores([s.token_ids for s in samples], "score"), self.shift)


@dataclass(frozen=True)
class _ModelScores:
    pending: Pending[list[float]]
    shift: float

    def result(self) -> Scores:
        values = [score - self.shift for score in self.pending.result()]
        return Scores(list(values), [{} for _ in values], 0)
