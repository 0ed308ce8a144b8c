"""GAE against its definition, closed forms and limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.kernels.gae import segmented_gae


def definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum of equation 16, written out for one sequence."""
    steps = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(steps)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, steps)) for t in range(steps)]


number = st.floats(-10, 10)
sequence = st.lists(st.tuples(number, number), max_size=8)


@given(st.lists(sequence, max_size=6), st.floats(0.1, 1), st.floats(0, 1))
def test_equals_the_definition(sequences: list[list[tuple[float, float]]], gamma: float, lam: float) -> None:
    rewards = [r for steps in sequences for r, _ in steps]
    values = [v for steps in sequences for _, v in steps]
    offsets = np.cumsum([0, *(len(steps) for steps in sequences)])
    advantages, returns = segmented_gae(rewards, values, offsets, gamma, lam)
    expected = [a for steps in sequences for a in definition([r for r, _ in steps], [v for _, v in steps], gamma, lam)]
    np.testing.assert_allclose(advantages, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(returns, advantages + values, rtol=0, atol=0)


def test_closed_form() -> None:
    """With reward R at the end only and values 0, A_t = (gamma lam)^(T-1-t) R: nothing follows the end."""
    advantages, returns = segmented_gae([0, 0, 0, 2.0], [0.0] * 4, [0, 4], gamma=0.9, lam=0.5)
    np.testing.assert_allclose(advantages, 2 * 0.45 ** np.array([3, 2, 1, 0]), rtol=1e-12)
    np.testing.assert_allclose(returns, advantages)


def test_lambda_zero_is_the_one_step_error() -> None:
    rewards, values = np.array([1.0, -2.0, 4.0, 3.0]), np.array([0.5, 1.5, -1.0, 2.0])
    advantages, _ = segmented_gae(rewards, values, [0, 3, 4], 0.9, 0.0)
    np.testing.assert_allclose(advantages, [1 + 0.9 * 1.5 - 0.5, -2 + 0.9 * -1 - 1.5, 4 + 1, 3 - 2])


def test_lambda_and_gamma_one_give_the_reward_to_come() -> None:
    rewards, values = np.array([1.0, -2.0, 4.0, 3.0]), np.array([0.5, 1.5, -1.0, 2.0])
    _, returns = segmented_gae(rewards, values, [0, 3, 4], 1.0, 1.0)
    np.testing.assert_allclose(returns, [1 - 2 + 4, -2 + 4, 4, 3])


def test_constant_offset_of_values() -> None:
    """With gamma = 1, adding c to every value lowers A_t by c lam^(T-1-t): only the end does not move along."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=9), rng.normal(size=9)
    advantages, _ = segmented_gae(rewards, values, [0, 2, 2, 9], 1.0, 0.7)
    shifted, _ = segmented_gae(rewards, values + 4, [0, 2, 2, 9], 1.0, 0.7)
    steps_left = np.array([1, 0, 6, 5, 4, 3, 2, 1, 0])
    np.testing.assert_allclose(shifted, advantages - 4 * 0.7**steps_left, atol=1e-12)


def test_inputs_are_not_changed() -> None:
    rewards, values = np.ones(2), np.full(2, 3.0)
    segmented_gae(rewards, values, [0, 2], 1.0, 1.0)
    assert rewards.tolist() == [1.0, 1.0]
    assert values.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(("values", "offsets"), [([1.0], [0, 2]), ([1.0, 2.0], [0, 1]), ([1.0, 2.0], [0, 3, 2])])
def test_lengths_must_fit(values: list[float], offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        segmented_gae([1.0, 2.0], values, offsets, 1.0, 1.0)
