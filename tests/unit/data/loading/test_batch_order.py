"""Batches are a pure function of step and seed, and every epoch holds every row once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.errors import UserError
from quadriga.data.loading.batch_order import batch_indices


@given(rows=st.integers(1, 40), batch_size=st.integers(1, 90), epochs=st.integers(1, 4), seed=st.integers(-5, 2**70))
def test_every_epoch_holds_every_row_once(rows: int, batch_size: int, epochs: int, seed: int) -> None:
    """Batches are exact, and no row is dropped or doubled at the border of two epochs."""
    steps = -(-rows * epochs // batch_size)
    batches = [batch_indices(step, batch_size, rows, seed) for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    stream = [index for batch in batches for index in batch]
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_depends_on_step_and_seed_only() -> None:
    """A resumed step sees the rows that the uninterrupted run would have seen."""
    assert batch_indices(7, 4, 100, 3) == batch_indices(7, 4, 100, 3)
    assert batch_indices(7, 4, 100, 3) != batch_indices(7, 4, 100, 4)
    first, second = batch_indices(0, 100, 100, 3), batch_indices(1, 100, 100, 3)
    assert first != second != list(range(100))


def test_no_rows_is_an_error() -> None:
    with pytest.raises(UserError, match="no rows"):
        batch_indices(0, 4, 0, 0)
