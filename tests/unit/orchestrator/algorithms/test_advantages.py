import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.data.errors import Fault
from quadriga.orchestrator.algorithms.advantages import (
    ESTIMATORS,
    Experience,
    compute,
    explained_variance,
    shaped_scores,
)
from quadriga.orchestrator.algorithms.kl import KLController, kl_penalty
from quadriga.orchestrator.algorithms.settings import AdaptiveKL, AlgorithmSettings, KLSettings
from quadriga.orchestrator.algorithms.whitening import whiten


def plain(**kwargs: Any) -> AlgorithmSettings:
    """No discount, no whitening, no penalty, no clip: returns are the rewards still to come."""
    base: dict[str, Any] = dict(
        gamma=1.0, lam=1.0, whiten_advantages=False, missing_eos_penalty=0.0, reward_clip=None, whiten_rewards=False
    )
    return AlgorithmSettings(**base | kwargs)


def experience(**kwargs: Any) -> Experience:
    """Two samples of three and two response tokens; the middle token of the first was written by a tool."""
    base = Experience(
        scores=[2.0, -1.0],
        ended=[True, False],
        logprobs=[[-1.0, -9.0, -2.0], [-0.5, -0.25]],
        ref_logprobs=[[-1.5, -1.0, -1.0], [-0.5, -0.75]],
        action_masks=[[1, 0, 1], [1, 1]],
        values=[[0.5, 100.0, 0.25], [1.0, -1.0]],
    )
    return replace(base, **kwargs)


def lists(arrays: Any) -> list[list[float]]:
    return [array.tolist() for array in arrays]


def test_rewards_by_hand() -> None:
    """Details 9 and 11: -coefficient·k1 on every action token, the score on the last; nothing on the tool's token."""
    found = compute(experience(), plain(), kl_coefficient=0.1)
    # k1: 0.5, (tool), -1.0 | 0.0, 0.5
    for one, other in zip(found.token_rewards, [[-0.05, 0, 2.1], [0, -1.05]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    # Undiscounted returns, stepping over the tool's token, whose value of 100 is never read.
    for one, other in zip(found.returns or [], [[2.05, 0, 2.1], [-1.05, -1.05]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    for one, other in zip(found.advantages, [[1.55, 0, 1.85], [-2.05, -0.05]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert all(array.dtype == np.float32 for array in found.advantages + found.token_rewards)


def test_statistics_by_hand() -> None:
    """Detail 26: masked tokens only; KL with the estimator that is trained on, a token and an answer at a time."""
    stats = compute(experience(), plain(), kl_coefficient=0.1).stats
    assert stats["kl"] == pytest.approx((0.5 - 1.0 + 0.0 + 0.5) / 4) and stats["kl_per_sample"] == pytest.approx(0.0)
    assert stats["score"] == 0.5 and stats["score_std"] == 1.5
    assert (stats["score_min"], stats["score_max"]) == (-1.0, 2.0)
    assert stats["reward"] == pytest.approx((2.05 - 1.05) / 2)
    assert stats["ended"] == 0.5 and stats["action_tokens"] == 4
    assert stats["value_mean"] == pytest.approx((0.5 + 0.25 + 1 - 1) / 4)
    returns, values = np.array([2.05, 2.1, -1.05, -1.05]), np.array([0.5, 0.25, 1, -1])
    assert stats["return_mean"] == pytest.approx(returns.mean())
    assert stats["explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns))
    squared = compute(experience(), plain(kl=KLSettings(estimator="k2")), kl_coefficient=0.1).stats
    assert squared["kl"] == pytest.approx((0.125 + 0.5 + 0 + 0.125) / 4)


def test_no_end_costs_the_penalty_and_is_not_bootstrapped() -> None:
    """Details 8 and 13: the cut-off second sample loses 3 more; its last return is its last reward alone."""
    found = compute(experience(), plain(missing_eos_penalty=3.0), kl_coefficient=0.0)
    np.testing.assert_allclose((found.returns or [])[0], [2, 0, 2])
    np.testing.assert_allclose((found.returns or [])[1], [-4, -4])
    assert found.stats["score"] == 0.5, "the score is reported as it was given"


def test_clip_comes_before_the_penalty() -> None:
    clipped = shaped_scores([20.0, -20.0, 3.0], [True, False, False], plain(reward_clip=10.0, missing_eos_penalty=1.0))
    assert clipped.tolist() == [10.0, -11.0, 2.0]


def test_gae_with_discount_by_hand() -> None:
    """Detail 13: gamma 0.9, lambda 0.5 on the two action tokens of the first sample."""
    found = compute(experience(), plain(gamma=0.9, lam=0.5), kl_coefficient=0.0)
    last = 2.0 - 0.25
    first = (0 + 0.9 * 0.25 - 0.5) + 0.45 * last
    np.testing.assert_allclose(found.advantages[0], [first, 0, last], rtol=1e-6)
    np.testing.assert_allclose((found.returns or [])[0], [first + 0.5, 0, last + 0.25], rtol=1e-6)


def test_advantages_are_whitened_over_the_whole_batch() -> None:
    """Detail 12: mean 0 and biased variance 1 over all action tokens; masked tokens stay 0; returns do not move."""
    before = compute(experience(), plain(), kl_coefficient=0.1)
    after = compute(experience(), plain(whiten_advantages=True), kl_coefficient=0.1)
    flat = np.array([1.55, 1.85, -2.05, -0.05])
    expected = (flat - flat.mean()) / flat.std()
    np.testing.assert_allclose(after.advantages[0], [expected[0], 0, expected[1]], rtol=1e-5)
    np.testing.assert_allclose(after.advantages[1], expected[2:], rtol=1e-5)
    assert lists(before.returns) == lists(after.returns)
    assert after.stats["advantage_mean"] == pytest.approx(flat.mean()), "statistics are taken before"


def test_rewards_are_whitened_without_moving_their_mean() -> None:
    """Detail 12."""
    found = compute(experience(), plain(whiten_rewards=True), kl_coefficient=0.1)
    flat = np.array([-0.05, 2.1, 0.0, -1.05])
    expected = (flat - flat.mean()) / flat.std() + flat.mean()
    rewards = np.concatenate([found.token_rewards[0][[0, 2]], found.token_rewards[1]])
    np.testing.assert_allclose(rewards, expected, rtol=1e-5)
    assert rewards.mean() == pytest.approx(flat.mean(), rel=1e-5) and rewards.var() == pytest.approx(1, rel=1e-5)
    assert found.token_rewards[0][1] == 0


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.booleans())
def test_whiten(values: list[float], shift: bool) -> None:
    found = whiten(values, shift_mean=shift)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / len(values)
    assert found.mean() == pytest.approx(0.0 if shift else mean, abs=1e-6)
    assert found.var() == pytest.approx(variance / (variance + 1e-8), abs=1e-6)


@given(st.integers(0, 99))
def test_kl_estimators_against_the_exact_sum(seed: int) -> None:
    """Detail 9: under the policy k1 and k3 average KL(policy || reference); k2 and k3 are never negative."""
    rng = np.random.default_rng(seed)
    policy, reference = rng.dirichlet(np.ones(7) * 3), rng.dirichlet(np.ones(7) * 3)
    exact = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    k1, k2, k3 = (kl_penalty(np.log(policy), np.log(reference), name) for name in ("k1", "k2", "k3"))
    assert (policy * k1).sum() == pytest.approx(exact, abs=1e-12)
    assert (policy * k3).sum() == pytest.approx(exact, abs=1e-12)
    np.testing.assert_allclose(k2, k1**2 / 2)
    assert (k2 >= 0).all() and (k3 >= -1e-15).all()


def test_equal_models_have_no_kl() -> None:
    same = experience(ref_logprobs=experience().logprobs)
    for name in ("k1", "k2", "k3"):
        stats = compute(same, plain(kl=KLSettings(estimator=name)), kl_coefficient=1.0).stats
        assert stats["kl"] == stats["kl_per_sample"] == 0.0


def test_adaptive_coefficient() -> None:
    """Detail 10: error clipped to ±0.2, scaled by n / horizon; the coefficient is what a checkpoint keeps."""
    controller = KLController(KLSettings(coefficient=0.1, adaptive=AdaptiveKL(target=6.0, horizon=10000)))
    controller.update(kl_per_sample=6.6, samples=512)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 512 / 10000))
    controller.update(kl_per_sample=600.0, samples=512)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.0512) * (1 + 0.2 * 0.0512))
    resumed = KLController(controller.settings)
    resumed.load_state_dict(controller.state_dict())
    resumed.update(0.0, 512)
    controller.update(0.0, 512)
    assert resumed.coefficient == controller.coefficient
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.0512) * (1 + 0.2 * 0.0512) * (1 - 0.2 * 0.0512))


def test_fixed_coefficient_stays() -> None:
    controller = KLController(KLSettings(coefficient=0.1))
    controller.update(100.0, 512)
    controller.load_state_dict({"coefficient": 0.7})
    assert controller.coefficient == 0.1


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
    fields = {name: [rng.normal(size=n) for n in lengths] for name in ("logprobs", "ref_logprobs", "values")}
    masks = [np.append(rng.integers(0, 2, n - 1), 1) for n in lengths]
    scores, ended = rng.normal(size=len(lengths)), rng.random(len(lengths)) < 0.5
    one = compute(Experience(scores, ended, action_masks=masks, **fields), AlgorithmSettings(), 0.05)
    moved = {name: [arrays[i] for i in order] for name, arrays in fields.items()}
    other = compute(
        Experience(scores[list(order)], ended[list(order)], action_masks=[masks[i] for i in order], **moved),
        AlgorithmSettings(),
        0.05,
    )
    for position, index in enumerate(order):
        np.testing.assert_allclose(other.advantages[position], one.advantages[index], rtol=1e-4, atol=1e-5)
    for key, value in one.stats.items():
        assert other.stats[key] == pytest.approx(value, abs=1e-9)


def test_registry_says_who_needs_a_critic() -> None:
    assert ESTIMATORS["gae"](plain()).needs_critic
    with pytest.raises(Fault, match="needs a critic"):
        compute(experience(values=None), plain(), 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [], "ended": [], "action_masks": []}, "no sample"),
        ({"scores": [1.0]}, "1 scores, 2 end marks"),
        ({"scores": [1.0, math.nan]}, "sample 1: score is nan"),
        ({"action_masks": [[1, 0, 1], [0, 0]]}, "sample 1 has no action token"),
        ({"logprobs": [[-1.0, -1.0], [-0.5, -0.25]]}, "sample 0 has 2 logprobs for 3"),
        ({"values": [[0.0, 0.0, 0.0], [1.0, math.inf]]}, "sample 1: values is inf"),
        ({"ref_logprobs": [[-1.0, -1.0, -1.0]]}, "1 arrays of ref_logprobs for 2"),
    ],
)
def test_broken_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Fault, match=message):
        compute(experience(**change), plain(), 0.1)
