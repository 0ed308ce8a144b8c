"""A Python function as reward, run in killable subprocesses."""

from typing import Any, Literal

from quadriga.data.records import Sample
from quadriga.orchestrator.rewards.base import (
    PendingScores,
    ReadyScores,
    Reward,
    RewardContext,
    RewardSettings,
    Scores,
)
from quadriga.orchestrator.rewards.function_pool import FunctionSettings, RewardFunctionPool, RowError, score_of


class RewardFunctionSettings(FunctionSettings, RewardSettings):
    """A Python function that scores answers, run in subprocesses that can be killed."""

    type: Literal["function"]
    """Kind of reward."""

    def check(self) -> str | None:
        """Check that the function can be imported, in a subprocess as in the run: a user's module may do anything."""
        RewardFunctionPool(self.model_copy(update={"processes": 1})).close()
        return f"function {self.function} imports"

    def start(self, context: RewardContext) -> Reward:
        """Start the subprocesses."""
        return FunctionReward(RewardFunctionPool(self, context.log), context.phase)


class FunctionReward(Reward):
    """A Python function in killable subprocesses. Raises Fault when too many answers fail."""

    def __init__(self, pool: RewardFunctionPool, phase: str):
        self.pool, self.phase, self.version = pool, phase, pool.settings.function

    def start(self, samples: list[Sample]) -> PendingScores:
        """Score now: the subprocesses compute, the driver waits."""
        return ReadyScores(score_samples(self.pool, samples, self.phase))

    def close(self) -> None:
        """Kill the subprocesses."""
        self.pool.close()


def score_samples(pool: RewardFunctionPool, samples: list[Sample], phase: str) -> Scores:
    """Have a function score samples. Raises Fault when more fail than its settings allow."""
    rows = [function_row(sample) for sample in samples]
    results = pool.score(rows)
    pool.check_rate(results, phase)
    good = [None if isinstance(result, RowError) else result for result in results]
    errors = sum(result is None for result in good)
    if pool.settings.drop == "group":
        spoilt = {sample.prompt.id for sample, result in zip(samples, good, strict=True) if result is None}
        good = [None if sample.prompt.id in spoilt else result for sample, result in zip(samples, good, strict=True)]
    named = [list(result.items()) if isinstance(result, dict) else [] for result in good]
    return Scores(
        [None if result is None else score_of(result) for result in good],
        [{name: value for name, value in items if not isinstance(value, str)} for items in named],
        errors,
        [{name: value for name, value in items if isinstance(value, str)} for items in named],
    )


def function_row(sample: Sample) -> dict[str, Any]:
    """Return the row that a reward function is called with."""
    messages = sample.prompt.messages
    return {
        "prompt": messages,
        "messages": messages,
        "response": sample.text,
        "response_ids": sample.response_ids,
        "meta": sample.prompt.meta,
    }
