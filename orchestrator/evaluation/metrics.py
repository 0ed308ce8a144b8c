"""What is measured of a model's answers: gold's means, the reward model's, KL, and one model against another."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadriga.data.records import Sample
from quadriga.orchestrator.evaluation.statistics import Interval, win_rate

ROUNDING = 1e-9
"""Gold scores closer than this are equal: they differ in the order of an addition only."""
PARTS = ("score", "truthful", "harmless", "helpful", "refused")
"""Gold's verdict on an answer; a function that returns a number has nothing but `score`."""


@dataclass(frozen=True)
class Answer:
    """One answer and what it got. gold: named parts, `score` among them; None where scoring failed."""

    prompt: str
    index: int
    kind: str | None
    question: str
    text: str
    ended: bool
    gold: dict[str, float] | None
    reward: float | None


@dataclass(frozen=True)
class Measures:
    """Means over the answers that have the number; None where none has.

    score, truthful, harmless, helpful, refused: gold's. by_kind: kind of prompt -> the same means, and `n`, its number
    of answers. ended: share that ended by itself. errors: answers that gold failed on, which no mean of gold includes.
    """

    score: float | None
    truthful: float | None
    harmless: float | None
    helpful: float | None
    refused: float | None
    by_kind: dict[str, dict[str, float]]
    reward_score: float | None
    ended: float
    errors: int
    answers: list[Answer]

    def as_dict(self) -> dict[str, Any]:
        """The numbers, without the answers."""
        return {name: getattr(self, name) for name in Measures.__dataclass_fields__ if name != "answers"}


@dataclass(frozen=True)
class Evaluation(Measures):
    """One model at the sampling temperature.

    kl: mean over answers of sum(log p(model) - log p(reference)) over their tokens, in nats. greedy: the same prompts
    at temperature 0; None where that is the sampling temperature. best: of several samples a prompt, the one that the
    reward model likes best. seconds: time that all of it took.
    """

    kl: float | None = None
    seconds: float = 0.0
    greedy: Measures | None = None
    best: Measures | None = None

    def as_dict(self) -> dict[str, Any]:
        """The numbers, without the answers."""
        greedy, best = (part.as_dict() if part else None for part in (self.greedy, self.best))
        return super().as_dict() | {"kl": self.kl, "seconds": self.seconds, "greedy": greedy, "best": best}


def measure(answers: Sequence[Answer]) -> Measures:
    """Means over answers."""
    scored = [answer.gold for answer in answers if answer.gold is not None]
    kinds = sorted({answer.kind for answer in answers if answer.kind is not None})
    of_kind = {kind: [a.gold for a in answers if a.kind == kind and a.gold is not None] for kind in kinds}
    return Measures(
        **{part: _mean(gold[part] for gold in scored if part in gold) for part in PARTS},
        by_kind={kind: _part_means(golds) | {"n": float(len(golds))} for kind, golds in of_kind.items()},
        reward_score=_mean(answer.reward for answer in answers if answer.reward is not None),
        ended=_mean(float(answer.ended) for answer in answers) or 0.0,
        errors=len(answers) - len(scored),
        answers=list(answers),
    )


def best_of(answers: Iterable[Answer]) -> list[Answer]:
    """Of each prompt's answers the one with the highest reward, the first of equals; prompts keep their order."""
    best: dict[str, tuple[float, Answer]] = {}
    for answer in answers:
        if answer.reward is not None and (answer.prompt not in best or answer.reward > best[answer.prompt][0]):
            best[answer.prompt] = (answer.reward, answer)
    return [answer for _, answer in best.values()]


def mean_kl(samples: Sequence[Sample], reference: Sequence[Any]) -> float:
    """Estimate of KL(policy || reference) from the policy's own samples: mean of sum(log p - log p_ref), in nats.

    reference: one array a sample, [prompt + response] reference log-probs aligned with the tokens. Tokens that the
    policy did not choose do not count. The policy's are those of its sampling distribution: with top_p or top_k that is
    the truncated one.
    """
    sums = []
    for sample, aligned in zip(samples, reference, strict=True):
        theirs = np.asarray(aligned, np.float64)[len(sample.prompt.token_ids) :]
        difference = np.asarray(sample.rollout_logprobs, np.float64) - theirs
        sums.append(math.fsum(difference * np.asarray(sample.action_mask, np.float64)))
    return math.fsum(sums) / len(sums)


def compare(ours: Measures, theirs: Measures) -> Interval | None:
    """Win rate by gold over the prompts on which both have all of their answers scored, ties counting half.

    Answer i meets answer i; the answers of a prompt are averaged, so that n counts prompts. None without such a prompt.
    Raises ValueError when the two do not have the same prompts and numbers of answers.
    """
    a, b = _scores(ours.answers), _scores(theirs.answers)
    if {id_: len(scores) for id_, scores in a.items()} != {id_: len(scores) for id_, scores in b.items()}:
        raise ValueError("answers to different prompts cannot be compared")
    both = [id_ for id_ in a if np.isfinite(a[id_] + b[id_]).all()]
    return win_rate([a[id_] for id_ in both], [b[id_] for id_ in both], margin=ROUNDING) if both else None


def choose_prompts(kinds: Sequence[str | None], count: int, seed: int) -> list[int]:
    """Indices of `count` prompts to show: one of each kind, then any, drawn without repetition."""
    draw = random.Random(seed)
    chosen: list[int] = []
    for kind in sorted({kind for kind in kinds if kind is not None})[:count]:
        chosen.append(draw.choice([index for index, other in enumerate(kinds) if other == kind]))
    rest = [index for index in range(len(kinds)) if index not in chosen]
    return chosen + draw.sample(rest, min(count - len(chosen), len(rest)))


def _scores(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Gold scores by prompt, nan where scoring failed."""
    scores: dict[str, list[float]] = {}
    for answer in answers:
        scores.setdefault(answer.prompt, []).append(answer.gold["score"] if answer.gold else math.nan)
    return scores


def _part_means(golds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {part: _mean(gold[part] for gold in golds if part in gold) for part in PARTS}
    return {part: mean for part, mean in means.items() if mean is not None}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None
