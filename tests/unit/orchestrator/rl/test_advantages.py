"""From scores and log-probs to advantages, by hand.

"Detail N" is a section of "The N Implementation Details of RLHF with PPO" (Huang et al. 2024).
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.data.errors import Fault
from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.algorithms.gae import Gae
from quadriga.orchestrator.algorithms.settings import AlgorithmSettings, KLSettings
from quadriga.orchestrator.rl.advantages import add_advantages, explained_variance, shaped_scores
from quadriga.orchestrator.rl.experience import Experience


def plain(**kwargs: Any) -> AlgorithmSettings:
    """No discount, no whitening, no penalty, no clip: returns are the rewards still to come."""
    base: dict[str, Any] = dict(missing_eos_penalty=0.0, reward_clip=None)
    gae = {"gamma": 1.0, "lam": 1.0, "whiten_advantages": False} | kwargs.pop("gae", {})
    return AlgorithmSettings(**base | {"estimator": Gae(**gae)} | kwargs)


def experience(
    scores: Any = (2.0, -1.0),
    ended: Any = (True, False),
    action_masks: Any = ((1, 0, 1), (1, 1)),
    **columns: Any,
) -> Experience:
    """Two samples of three and two response tokens; the middle token of the first was written by a tool."""
    samples = [
        Sample(
            prompt=Prompt(f"p{number}", [], [5, 6]),
            index=0,
            response_ids=[7] * len(mask),
            rollout_logprobs=[0.0] * len(mask),
            action_mask=[int(x) for x in mask],
            versions=[0] * len(mask),
            finish_reason="stop" if end else "length",
            text="",
        )
        for number, (mask, end) in enumerate(zip(action_masks, ended, strict=True))
    ]
    made = Experience(samples)
    made.add_numbers("score", list(scores))
    defaults = {
        "old_logprobs": [[-1.0, -9.0, -2.0], [-0.5, -0.25]],
        "ref_logprobs": [[-1.5, -1.0, -1.0], [-0.5, -0.75]],
        "old_values": [[0.5, 100.0, 0.25], [1.0, -1.0]],
    }
    made.add({name: arrays for name, arrays in (defaults | columns).items() if arrays is not None})
    return made


def compute(
    given: Experience, algorithm: AlgorithmSettings, kl_coefficient: float
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Return the columns and statistics of an experience with advantages."""
    stats = add_advantages(given, algorithm, kl_coefficient)
    return given.columns, stats


def lists(arrays: Any) -> list[list[float]]:
    return [array.tolist() for array in arrays]


def test_rewards_by_hand() -> None:
    """Details 9 and 11: -coefficient·k1 on every action token, the score on the last; nothing on the tool's token."""
    found, _ = compute(experience(), plain(), kl_coefficient=0.1)
    # k1: 0.5, (tool), -1.0 | 0.0, 0.5
    for one, other in zip(found["token_rewards"], [[-0.05, 0, 2.1], [0, -1.05]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    # Undiscounted returns, stepping over the tool's token, whose value of 100 is never read.
    for one, other in zip(found["returns"], [[2.05, 0, 2.1], [-1.05, -1.05]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    for one, other in zip(found["advantages"], [[1.55, 0, 1.85], [-2.05, -0.05]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert {array.dtype for array in found["advantages"] + found["token_rewards"]} == {np.dtype(np.float32)}


def test_statistics_by_hand() -> None:
    """Detail 26: masked tokens only; KL with the estimator that is trained on, per token and per answer."""
    _, stats = compute(experience(), plain(), kl_coefficient=0.1)
    assert stats["kl"] == pytest.approx((0.5 - 1.0 + 0.0 + 0.5) / 4)
    assert stats["kl_per_sample"] == pytest.approx(0.0)
    assert stats["score"] == 0.5
    assert stats["score_std"] == 1.5
    assert (stats["score_min"], stats["score_max"]) == (-1.0, 2.0)
    assert stats["reward"] == pytest.approx((2.05 - 1.05) / 2)
    assert stats["ended"] == 0.5
    assert stats["action_tokens"] == 4
    assert stats["value_mean"] == pytest.approx((0.5 + 0.25 + 1 - 1) / 4)
    returns, values = np.array([2.05, 2.1, -1.05, -1.05]), np.array([0.5, 0.25, 1, -1])
    assert stats["return_mean"] == pytest.approx(returns.mean())
    assert stats["explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns))
    _, squared = compute(experience(), plain(kl=KLSettings(estimator="k2")), kl_coefficient=0.1)
    assert squared["kl"] == pytest.approx((0.125 + 0.5 + 0 + 0.125) / 4)


def test_no_end_costs_the_penalty_and_is_not_bootstrapped() -> None:
    """Details 8 and 13: the cut-off second sample loses 3 more; its last return is its last reward alone."""
    found, stats = compute(experience(), plain(missing_eos_penalty=3.0), kl_coefficient=0.0)
    np.testing.assert_allclose(found["returns"][0], [2, 0, 2])
    np.testing.assert_allclose(found["returns"][1], [-4, -4])
    assert stats["score"] == 0.5, "the score is reported as it was given"


def test_clip_comes_before_the_penalty() -> None:
    clipped = shaped_scores([20.0, -20.0, 3.0], [True, False, False], plain(reward_clip=10.0, missing_eos_penalty=1.0))
    assert clipped.tolist() == [10.0, -11.0, 2.0]


def test_gae_with_discount_by_hand() -> None:
    """Detail 13: gamma 0.9, lambda 0.5 on the two action tokens of the first sample."""
    found, _ = compute(experience(), plain(gae={"gamma": 0.9, "lam": 0.5}), kl_coefficient=0.0)
    last = 2.0 - 0.25
    first = (0 + 0.9 * 0.25 - 0.5) + 0.45 * last
    np.testing.assert_allclose(found["advantages"][0], [first, 0, last], rtol=1e-6)
    np.testing.assert_allclose(found["returns"][0], [first + 0.5, 0, last + 0.25], rtol=1e-6)


def test_advantages_are_whitened_over_the_whole_batch() -> None:
    """Detail 12: mean 0 and biased variance 1 over all action tokens; masked tokens stay 0; returns do not move."""
    before, _ = compute(experience(), plain(), kl_coefficient=0.1)
    after, stats = compute(experience(), plain(gae={"whiten_advantages": True}), kl_coefficient=0.1)
    flat = np.array([1.55, 1.85, -2.05, -0.05])
    expected = (flat - flat.mean()) / flat.std()
    np.testing.assert_allclose(after["advantages"][0], [expected[0], 0, expected[1]], rtol=1e-5)
    np.testing.assert_allclose(after["advantages"][1], expected[2:], rtol=1e-5)
    assert lists(before["returns"]) == lists(after["returns"])
    assert stats["advantage_mean"] == pytest.approx(flat.mean()), "statistics are taken before"
    assert stats["advantage_std"] == pytest.approx(flat.std()), "statistics are taken before"


def test_rewards_are_whitened_without_moving_their_mean() -> None:
    """Detail 12: with gamma and lambda 1, returns are sums of the whitened rewards."""
    found, _ = compute(experience(), plain(gae={"whiten_rewards": True}), kl_coefficient=0.1)
    flat = np.array([-0.05, 2.1, 0.0, -1.05])
    whitened = (flat - flat.mean()) / flat.std() + flat.mean()
    np.testing.assert_allclose(found["returns"][0], [whitened[:2].sum(), 0, whitened[1]], rtol=1e-5)
    np.testing.assert_allclose(found["returns"][1], [whitened[2:].sum(), whitened[3]], rtol=1e-5)


def test_equal_models_have_no_kl() -> None:
    for name in ("k1", "k2", "k3"):
        same = experience(ref_logprobs=experience().columns["old_logprobs"])
        _, stats = compute(same, plain(kl=KLSettings(estimator=name)), kl_coefficient=1.0)
        assert stats["kl"] == stats["kl_per_sample"] == 0.0


def test_explained_variance() -> None:
    """Detail 26."""
    returns = np.array([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance([5.0, 5.0, 5.0], returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance([1.0], [2.0]) == 0.0


@settings(deadline=None)
@given(st.data())
def test_order_of_samples_does_not_matter(data: st.DataObject) -> None:
    """Details 12 and 15: whitening is over the batch, so that no cut of it over ranks or minibatches can matter."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    order = data.draw(st.permutations(range(len(lengths))))
    columns = {name: [rng.normal(size=n) for n in lengths] for name in ("old_logprobs", "ref_logprobs", "old_values")}
    masks = [np.append(rng.integers(0, 2, n - 1), 1) for n in lengths]
    scores, ended = rng.normal(size=len(lengths)), rng.random(len(lengths)) < 0.5
    one, stats = compute(experience(scores, ended, masks, **columns), AlgorithmSettings(), 0.05)
    moved = {name: [arrays[i] for i in order] for name, arrays in columns.items()}
    other, other_stats = compute(
        experience(scores[list(order)], ended[list(order)], [masks[i] for i in order], **moved),
        AlgorithmSettings(),
        0.05,
    )
    for position, index in enumerate(order):
        np.testing.assert_allclose(other["advantages"][position], one["advantages"][index], rtol=1e-4, atol=1e-5)
    for key, value in stats.items():
        assert other_stats[key] == pytest.approx(value, abs=1e-9)


def test_an_estimator_without_its_critic_is_named() -> None:
    with pytest.raises(Fault, match="'gae' needs a critic"):
        compute(experience(old_values=None), plain(), 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scores": [], "ended": [], "action_masks": [], "old_logprobs": [], "ref_logprobs": [], "old_values": []},
            "no sample",
        ),
        ({"scores": [1.0]}, "1 numbers of score for 2 samples"),
        ({"scores": [1.0, math.nan]}, "sample 1: score is nan"),
        ({"action_masks": [[1, 0, 1], [0, 0]]}, "sample 1 has no action token"),
        ({"old_logprobs": [[-1.0, -1.0], [-0.5, -0.25]]}, "sample 0 has 2 old_logprobs for 3"),
        ({"old_values": [[0.0, 0.0, 0.0], [1.0, math.inf]]}, "sample 1: old_values is inf"),
        ({"ref_logprobs": [[-1.0, -1.0, -1.0]]}, "1 arrays of ref_logprobs for 2"),
    ],
)
def test_broken_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Fault, match=message):
        compute(experience(**change), plain(), 0.1)
