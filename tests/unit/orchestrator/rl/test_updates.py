"""Minibatches: equal in size, and what they were where the size divides the samples."""

from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.loading.batch_order import batch_indices, hash_seed
from quadriga.orchestrator.rl.updates import minibatches


@given(st.integers(1, 200), st.integers(1, 70), st.integers(1, 3))
def test_minibatches_differ_by_one_sample_at_most(samples: int, size: int, epochs: int) -> None:
    found = list(minibatches(samples, size, epochs, 7, 3))
    number = -(-samples // size)
    assert len(found) == number * epochs
    for epoch in range(epochs):
        own = found[epoch * number : (epoch + 1) * number]
        assert sorted(index for minibatch in own for index in minibatch) == list(range(samples))
        assert max(map(len, own)) <= size
        assert max(map(len, own)) - min(map(len, own)) <= 1


def test_no_minibatch_is_the_rest_of_a_dropped_answer() -> None:
    """65 samples in minibatches of 64 were one of 64 and one of 1, each a whole optimizer step."""
    assert sorted(map(len, minibatches(65, 64, 1, 0, 0))) == [32, 33]


@given(st.integers(1, 8), st.integers(1, 16), st.integers(0, 99), st.integers(0, 9))
def test_full_minibatches_are_slices_of_the_order(number: int, size: int, seed: int, step: int) -> None:
    samples = number * size
    order = batch_indices(0, samples, samples, hash_seed(seed, step, 0))
    expected = [sorted(order[start : start + size]) for start in range(0, samples, size)]
    assert list(minibatches(samples, size, 1, seed, step)) == expected
