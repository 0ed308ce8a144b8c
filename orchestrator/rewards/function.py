"""A Python function as reward, run in killable subprocesses."""

from dataclasses import dataclass
from typing import Any

from quadriga.data.records import Sample
from quadriga.orchestrator.rewards.base import PendingScores, Scores
from quadriga.orchestrator.rewards.function_pool import Judge, JudgeError, score_of


class FunctionReward:
    """A Python function in killable subprocesses. Raises Fault when too many answers fail."""

    def __init__(self, judge: Judge):
        self.judge, self.version = judge, judge.settings.function

    def start(self, samples: list[Sample]) -> PendingScores:
        """Judge now; the subprocesses compute, the driver waits."""
        return _Ready(judged(self.judge, samples, "score"))


@dataclass(frozen=True)
class _Ready:
    scores: Scores

    def result(self) -> Scores:
        return self.scores


def judged(judge: Judge, samples: list[Sample], phase: str) -> Scores:
    """Have a judge score samples. Raises Fault when more fail than its settings allow."""
    rows = [judge_row(sample.prompt.messages, sample.text, sample.prompt.meta) for sample in samples]
    results = judge.judge(rows)
    judge.check_rate(results, phase)
    good = [None if isinstance(result, JudgeError) else result for result in results]
    errors = sum(result is None for result in good)
    if judge.settings.drop == "group":
        spoilt = {sample.prompt.id for sample, result in zip(samples, good, strict=True) if result is None}
        good = [None if sample.prompt.id in spoilt else result for sample, result in zip(samples, good, strict=True)]
    return Scores(
        [None if result is None else score_of(result) for result in good],
        [result if isinstance(result, dict) else {} for result in good],
        errors,
    )


def judge_row(messages: list[dict[str, str]], response: str, meta: dict[str, Any]) -> dict[str, Any]:
    """What a judge function is called with."""
    return {"prompt": messages, "messages": messages, "response": response, "meta": meta}
