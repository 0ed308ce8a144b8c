"""Metrics of a model's answers: means of gold and reward scores, KL, and win rates between models."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadriga.data.records import Sample
from quadriga.orchestrator.evaluation.statistics import Interval, win_rate

ROUNDING = 1e-9
"""Gold scores closer than this are equal: they differ by rounding only."""
PARTS = ("score", "truthful", "harmless", "helpful", "refused", "abstained")
"""Parts of a gold score; a function that returns a number gives only `score`."""


@dataclass(frozen=True)
class Answer:
    """One answer with its scores. turn: of its question in the conversation, from 1. gold: named parts, `score` among
    them; None if scoring failed."""

    prompt: str
    index: int
    kind: str | None
    question: str
    text: str
    ended: bool
    gold: dict[str, float] | None
    reward: float | None
    turn: int = 1


@dataclass(frozen=True)
class Measures:
    """Means over the answers that have the value; None if none has.

    score, truthful, harmless, helpful, refused, abstained: parts of the gold score. by_kind: kind of prompt -> the same
    means, and `n`, the number of its scored answers; by_turn: the same by the turn of the question. ended: share of the
    answers that ended before the limit of tokens. errors: number of answers whose gold scoring failed, which the means
    of gold scores leave out.
    """

    score: float | None
    truthful: float | None
    harmless: float | None
    helpful: float | None
    refused: float | None
    abstained: float | None
    by_kind: dict[str, dict[str, float]]
    by_turn: dict[str, dict[str, float]]
    reward_score: float | None
    ended: float
    errors: int
    answers: list[Answer]

    def as_dict(self) -> dict[str, Any]:
        """The numbers, without the answers."""
        return {name: getattr(self, name) for name in Measures.__dataclass_fields__ if name != "answers"}


@dataclass(frozen=True)
class Evaluation(Measures):
    """Measures of one model at the sampling temperature.

    kl: mean over answers of sum(log p(model) - log p(reference)) over their tokens, in nats. greedy: measures of the
    same prompts at temperature 0; None if that is the sampling temperature. best: measures of the sample with the
    highest reward per prompt; None with one sample per prompt or without a reward model. seconds: duration of
    the evaluation.
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
    """Return the means over answers."""
    scored = [answer.gold for answer in answers if answer.gold is not None]
    return Measures(
        **{part: _mean(gold[part] for gold in scored if part in gold) for part in PARTS},
        by_kind=_by((answer.kind, answer.gold) for answer in answers if answer.kind is not None),
        by_turn=_by((str(answer.turn), answer.gold) for answer in answers),
        reward_score=_mean(answer.reward for answer in answers if answer.reward is not None),
        ended=_mean(float(answer.ended) for answer in answers) or 0.0,
        errors=len(answers) - len(scored),
        answers=list(answers),
    )


def best_of(answers: Iterable[Answer]) -> list[Answer]:
    """Return the answer with the highest reward per prompt, the first of equals; prompts keep their order."""
    best: dict[str, tuple[float, Answer]] = {}
    for answer in answers:
        if answer.reward is not None and (answer.prompt not in best or answer.reward > best[answer.prompt][0]):
            best[answer.prompt] = (answer.reward, answer)
    return [answer for _, answer in best.values()]


def mean_kl(samples: Sequence[Sample], reference: Sequence[Any]) -> float:
    """Estimate KL(policy || reference) in nats from the policy's own samples: the mean of sum(log p - log p_ref).

    reference: one array per sample, [prompt + response] reference log-probs aligned with the tokens. Tokens outside the
    action mask do not count. The policy's log-probs are those of its sampling distribution, which top_p and top_k
    truncate.
    """
    sums = []
    for sample, aligned in zip(samples, reference, strict=True):
        theirs = np.asarray(aligned, np.float64)[len(sample.prompt.token_ids) :]
        difference = np.asarray(sample.rollout_logprobs, np.float64) - theirs
        sums.append(math.fsum(difference * np.asarray(sample.action_mask, np.float64)))
    return math.fsum(sums) / len(sums)


def compare(ours: Measures, theirs: Measures) -> Interval | None:
    """Return the win rate by gold score over the prompts whose answers are all scored; a tie counts half.

    Answer i is compared with answer i, and the outcomes of a prompt are averaged, so that n counts prompts. None if no
    prompt is fully scored. Raises ValueError unless both have the same prompts and numbers of answers.
    """
    a, b = _scores(ours.answers), _scores(theirs.answers)
    if {id_: len(scores) for id_, scores in a.items()} != {id_: len(scores) for id_, scores in b.items()}:
        raise ValueError("answers to different prompts cannot be compared")
    both = [id_ for id_ in a if np.isfinite(a[id_] + b[id_]).all()]
    return win_rate([a[id_] for id_ in both], [b[id_] for id_ in both], margin=ROUNDING) if both else None


def choose_prompts(kinds: Sequence[str | None], count: int, seed: int) -> list[int]:
    """Return the indices of `count` prompts to show: one of each kind, then any, drawn without repetition."""
    draw = random.Random(seed)
    chosen: list[int] = []
    for kind in sorted({kind for kind in kinds if kind is not None})[:count]:
        chosen.append(draw.choice([index for index, other in enumerate(kinds) if other == kind]))
    rest = [index for index in range(len(kinds)) if index not in chosen]
    return chosen + draw.sample(rest, min(count - len(chosen), len(rest)))


def _scores(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Return prompt id -> gold scores of its answers, nan if scoring failed."""
    scores: dict[str, list[float]] = {}
    for answer in answers:
        scores.setdefault(answer.prompt, []).append(answer.gold["score"] if answer.gold else math.nan)
    return scores


def _by(golds: Iterable[tuple[str, dict[str, float] | None]]) -> dict[str, dict[str, float]]:
    """Return the means of each group, and `n`, from (group, gold scores) of every answer."""
    groups: dict[str, list[dict[str, float]]] = {}
    for group, gold in golds:
        groups.setdefault(group, []).extend([gold] if gold is not None else [])
    return {group: _part_means(own) | {"n": float(len(own))} for group, own in sorted(groups.items())}


def _part_means(golds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {part: _mean(gold[part] for gold in golds if part in gold) for part in PARTS}
    return {part: mean for part, mean in means.items() if mean is not None}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None
