"""Means, KL, win rates and the choice of prompts, against numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.evaluation.metrics import (
    Answer,
    Evaluation,
    best_of,
    choose_prompts,
    compare,
    mean_kl,
    measure,
)


def answer(prompt: str, score: float | None, *, index=0, kind=None, reward=None, ended=True, **parts) -> Answer:
    gold = None if score is None else {"score": score, **parts}
    return Answer(prompt, index, kind, f"question {prompt}", f"answer {prompt}/{index}", ended, gold, reward)


def test_means_leave_failed_answers_out() -> None:
    measures = measure(
        [
            answer("a", 0.25, kind="facts", reward=1.0, truthful=1.0, refused=0.0),
            answer("b", 0.75, kind="facts", reward=-2.0, truthful=0.0, refused=1.0, ended=False),
            answer("c", None, kind="facts", reward=4.0),
            answer("d", 1.0, kind="harmful", reward=None, truthful=1.0, refused=1.0),
        ]
    )
    assert measures.score == pytest.approx(2 / 3)
    assert measures.truthful == pytest.approx(2 / 3)
    assert measures.refused == pytest.approx(2 / 3)
    assert measures.harmless is None
    assert measures.reward_score == 1.0
    assert measures.ended == 0.75
    assert measures.errors == 1
    assert measures.by_kind == {
        "facts": {"score": 0.5, "truthful": 0.5, "refused": 0.5, "n": 2.0},
        "harmful": {"score": 1.0, "truthful": 1.0, "refused": 1.0, "n": 1.0},
    }
    assert measures.by_turn["1"]["n"] == 3.0
    assert "answers" not in measures.as_dict()


def test_means_by_the_turn_of_the_question() -> None:
    first, second = answer("a", 0.5, abstained=1.0), replace(answer("b", 0.25, abstained=0.0), turn=2)
    failed = replace(answer("c", None), turn=2)
    measures = measure([first, second, failed])
    assert measures.by_turn == {
        "1": {"score": 0.5, "abstained": 1.0, "n": 1.0},
        "2": {"score": 0.25, "abstained": 0.0, "n": 1.0},
    }
    assert measures.abstained == 0.5


def test_means_without_scores_are_none() -> None:
    measures = measure([answer("a", None)])
    assert measures.score is None
    assert measures.errors == 1
    assert measures.by_kind == {}


def test_best_of_takes_the_highest_reward_of_each_prompt() -> None:
    answers = [
        answer("b", 0.1, index=0, reward=-1.0),
        answer("b", 0.9, index=1, reward=0.0),
        answer("b", 0.2, index=2, reward=0.0),
        answer("a", 0.3, index=0, reward=None),
        answer("a", 0.4, index=1, reward=-9.0),
        answer("c", 0.5, index=0, reward=None),
    ]
    assert [(a.prompt, a.index) for a in best_of(answers)] == [("b", 1), ("a", 1)]


def sample(prompt_ids: list[int], logprobs: list[float], mask: list[int]) -> Sample:
    n = len(logprobs)
    return Sample(Prompt("p", [], prompt_ids), 0, [7] * n, logprobs, mask, [0] * n, "stop", "text")


def test_kl_is_the_mean_over_answers_of_sums_over_tokens() -> None:
    samples = [sample([1, 2, 3], [-1.0, -0.5], [1, 1]), sample([1], [-2.0, -3.0, -0.25], [1, 0, 1])]
    reference = [np.array([0, -9, -9, -1.5, -1.0], np.float32), np.array([0, -2.5, -99, -1.25], np.float32)]
    assert mean_kl(samples, reference) == pytest.approx(((0.5 + 0.5) + (0.5 + 1.0)) / 2)
    same = [np.array([0.0, 0, 0, -1.0, -0.5]), np.array([0, -2.0, -3.0, -0.25])]
    assert mean_kl(samples, same) == 0.0


def test_win_rate_counts_prompts_and_halves_ties() -> None:
    ours = measure([answer("a", 0.5), answer("b", 0.3), answer("c", 0.1 + 0.2), answer("d", None), answer("e", 0.0)])
    theirs = measure([answer("a", 0.4), answer("b", 0.4), answer("c", 0.3), answer("d", 1.0), answer("e", 0.0)])
    rate = compare(ours, theirs)
    assert rate is not None
    assert (rate.mean, rate.n) == (pytest.approx((1 + 0 + 0.5 + 0.5) / 4), 4)  # c is equal but for rounding
    back = compare(theirs, ours)
    assert back is not None
    assert back.mean == pytest.approx(1 - rate.mean)


def test_several_samples_of_a_prompt_are_one_item() -> None:
    ours = measure([answer("a", 0.5, index=0), answer("a", 0.5, index=1), answer("b", 1.0), answer("b", 1.0, index=1)])
    theirs = measure([answer("a", 0.6, index=0), answer("a", 0.4, index=1), answer("b", 0), answer("b", 1.0, index=1)])
    rate = compare(ours, theirs)
    assert rate is not None
    assert (rate.mean, rate.n) == (pytest.approx((0.5 + 0.75) / 2), 2)


def test_answers_to_different_prompts_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        compare(measure([answer("a", 1.0)]), measure([answer("b", 1.0)]))
    assert compare(measure([answer("a", None)]), measure([answer("a", 1.0)])) is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["facts", "howto", "harmful", "lookalike", None]), max_size=30), st.integers(0, 9))
def test_shown_prompts_are_one_of_each_kind_then_any(kinds: list[str | None], seed: int) -> None:
    chosen = choose_prompts(kinds, 6, seed)
    assert chosen == choose_prompts(kinds, 6, seed)
    assert len(chosen) == len(set(chosen)) == min(6, len(kinds))
    known = sorted({kind for kind in kinds if kind is not None})
    assert [kinds[index] for index in chosen[: len(known)]] == known


def test_shown_prompts_depend_on_the_seed() -> None:
    kinds = ["facts", "howto", "harmful", "lookalike"] * 50
    assert len({tuple(choose_prompts(kinds, 6, seed)) for seed in range(5)}) == 5


def test_an_evaluation_as_a_dict_holds_its_parts() -> None:
    plain = measure([answer("a", 0.5, reward=math.e)])
    fields = {name: getattr(plain, name) for name in type(plain).__dataclass_fields__}
    whole = Evaluation(**fields, kl=1.5, seconds=2.0, greedy=plain).as_dict()
    assert (whole["score"], whole["kl"], whole["seconds"]) == (0.5, 1.5, 2.0)
    assert whole["greedy"]["reward_score"] == math.e
    assert whole["best"] is None
