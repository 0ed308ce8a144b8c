"""A Python function as reward, run in killable subprocesses."""

from dataclasses import dataclass
from typing import Any

from quadriga.data.records import Sample
from quadriga.orchestrator.rewards.base import PendingScores, Scores
from quadriga.orchestrator.rewards.function_pool import RewardFunctionPool, RowError, score_of


class FunctionReward:
    """A Python function in killable subprocesses. Raises Fault when too many answers fail."""

    def __init__(self, pool: RewardFunctionPool):
        self.pool, self.version = pool, pool.settings.function

    def start(self, samples: list[Sample]) -> PendingScores:
        """Score now: the subprocesses compute, the driver waits."""
        return _Ready(score_samples(self.pool, samples, "score"))


@dataclass(frozen=True)
class _Ready:
    scores: Scores

    def result(self) -> Scores:
        return self.scores


def score_samples(pool: RewardFunctionPool, samples: list[Sample], phase: str) -> Scores:
    """Have a function score samples. Raises Fault when more fail than its settings allow."""
    rows = [function_row(sample.prompt.messages, sample.text, sample.prompt.meta) for sample in samples]
    results = pool.score(rows)
    pool.check_rate(results, phase)
    good = [None if isinstance(result, RowError) else result for result in results]
    errors = sum(result is None for result in good)
    if pool.settings.drop == "group":
        spoilt = {sample.prompt.id for sample, result in zip(samples, good, strict=True) if result is None}
        good = [None if sample.prompt.id in spoilt else result for sample, result in zip(samples, good, strict=True)]
    return Scores(
        [None if result is None else score_of(result) for result in good],
        [result if isinstance(result, dict) else {} for result in good],
        errors,
    )


def function_row(messages: list[dict[str, str]], response: str, meta: dict[str, Any]) -> dict[str, Any]:
    """What a reward function is called with."""
    return {"prompt": messages, "messages": messages, "response": response, "meta": meta}
