import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.kernels.gae import segmented_gae


def definition(rewards, values, gamma: float, lam: float, last: float):  # type: ignore[no-untyped-def]
    """The sum of equation 16, written out for one sequence."""
    steps = len(rewards)
    following = [*values[1:], last]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(steps)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, steps)) for t in range(steps)]


number = st.floats(-10, 10)
sequence = st.tuples(st.lists(st.tuples(number, number), max_size=8), number)


@given(st.lists(sequence, max_size=6), st.floats(0.1, 1), st.floats(0, 1))
def test_equals_the_definition(sequences, gamma: float, lam: float) -> None:  # type: ignore[no-untyped-def]
    rewards = [r for steps, _ in sequences for r, _ in steps]
    values = [v for steps, _ in sequences for _, v in steps]
    offsets = np.cumsum([0, *(len(steps) for steps, _ in sequences)])
    advantages, returns = segmented_gae(rewards, values, offsets, gamma, lam, [last for _, last in sequences])
    expected = [
        a
        for steps, last in sequences
        for a in definition([r for r, _ in steps], [v for _, v in steps], gamma, lam, last)
    ]
    np.testing.assert_allclose(advantages, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(returns, advantages + values, rtol=0, atol=0)


def test_closed_form() -> None:
    """Detail 13: with reward R at the end only and values 0, A_t = (gamma lam)^(T-1-t) R; bootstrap 0 after the end."""
    advantages, returns = segmented_gae([0, 0, 0, 2.0], [0.0] * 4, [0, 4], gamma=0.9, lam=0.5)
    np.testing.assert_allclose(advantages, 2 * 0.45 ** np.array([3, 2, 1, 0]), rtol=1e-12)
    np.testing.assert_allclose(returns, advantages)


def test_limits_of_lambda() -> None:
    """lam = 0 is the one-step error; gamma = lam = 1 is the reward still to come minus the value."""
    rewards, values = np.array([1.0, -2.0, 4.0, 3.0]), np.array([0.5, 1.5, -1.0, 2.0])
    offsets, last = [0, 3, 4], [7.0, -5.0]
    one_step, _ = segmented_gae(rewards, values, offsets, 0.9, 0.0, last)
    np.testing.assert_allclose(one_step, [1 + 0.9 * 1.5 - 0.5, -2 + 0.9 * -1 - 1.5, 4 + 0.9 * 7 + 1, 3 - 0.9 * 5 - 2])
    _, returns = segmented_gae(rewards, values, offsets, 1.0, 1.0, last)
    np.testing.assert_allclose(returns, [1 - 2 + 4 + 7, -2 + 4 + 7, 4 + 7, 3 - 5])


def test_constant_offset_of_values_cancels() -> None:
    """With gamma = 1 and a bootstrap, adding c to every value leaves advantages and moves returns by c."""
    rng = np.random.default_rng(0)
    rewards, values, last = rng.normal(size=9), rng.normal(size=9), rng.normal(size=3)
    advantages, returns = segmented_gae(rewards, values, [0, 2, 2, 9], 1.0, 0.7, last)
    shifted, moved = segmented_gae(rewards, values + 4, [0, 2, 2, 9], 1.0, 0.7, last + 4)
    np.testing.assert_allclose(shifted, advantages, atol=1e-12)
    np.testing.assert_allclose(moved, returns + 4, atol=1e-12)


def test_inputs_are_not_changed() -> None:
    last = np.array([1.0])
    segmented_gae(np.ones(2), np.ones(2), [0, 2], 1.0, 1.0, last)
    assert last.tolist() == [1.0]


@pytest.mark.parametrize(("values", "offsets"), [([1.0], [0, 2]), ([1.0, 2.0], [0, 1]), ([1.0, 2.0], [0, 3, 2])])
def test_lengths_must_fit(values: list[float], offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        segmented_gae([1.0, 2.0], values, offsets, 1.0, 1.0)
