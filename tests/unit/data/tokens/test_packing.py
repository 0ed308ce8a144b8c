"""Packing: real lengths, exact inverses, and plans that balance the ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.tokens.packing import pack, plan, unpack

ragged = st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=8)


def test_pack_lays_sequences_end_to_end() -> None:
    batch = pack(
        [[5, 6, 7], [8], [9, 10]],
        {"mask": [[0, 1, 1], [1], [0, 1]], "old": [np.array([0.0, 0.5, 1.5]), np.array([2.0]), np.array([3.0, 4.0])]},
        {"group": [0, 0, 1]},
    )
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.token_ids.dtype == np.int64
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.position_ids.dtype == np.int64
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert batch.cu_seqlens.dtype == np.int32
    assert batch.tokens["mask"].tolist() == [0, 1, 1, 1, 0, 1]
    assert batch.tokens["mask"].dtype == np.int64
    assert batch.tokens["old"].tolist() == [0.0, 0.5, 1.5, 2.0, 3.0, 4.0]
    assert batch.tokens["old"].dtype == np.float32
    assert batch.sequences["group"].tolist() == [0, 0, 1]


def test_positions_ignore_token_values() -> None:
    """Positions and borders come from real lengths, also when every token is the padding token 0."""
    batch = pack([[0, 0, 0], [0, 0]])
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]


@given(ragged)
def test_unpack_inverts_pack(sequences: list[list[int]]) -> None:
    batch = pack(sequences, {"twice": [[2 * token for token in sequence] for sequence in sequences]})
    assert [part.tolist() for part in unpack(batch.token_ids, batch.cu_seqlens)] == sequences
    assert (batch.tokens["twice"] == 2 * batch.token_ids).all()


def test_wrong_lengths_are_named() -> None:
    with pytest.raises(ValueError, match="'mask' of sequence 1 has 1 values for 2 tokens"):
        pack([[1], [2, 3]], {"mask": [[1], [1]]})
    with pytest.raises(ValueError, match="'group' has 1 values for 2 sequences"):
        pack([[1], [2, 3]], per_sequence={"group": [0]})
    with pytest.raises(ValueError, match="'mask' has 1 arrays for 2 sequences"):
        pack([[1], [2, 3]], {"mask": [[1]]})
    with pytest.raises(ValueError, match="4 values for 3 tokens"):
        unpack(np.zeros(4), np.array([0, 3]))


@given(lengths=st.lists(st.integers(1, 50), max_size=60), ranks=st.integers(1, 6), budget=st.integers(1, 120))
def test_plan_invariants(lengths: list[int], ranks: int, budget: int) -> None:
    batches = plan(lengths, ranks, budget).ranks
    assert len(batches) == ranks
    assert len({len(rank) for rank in batches}) == 1, "every rank has the same number of micro-batches"
    flat = [index for rank in batches for batch in rank for index in batch]
    assert sorted(flat) == list(range(len(lengths))), "every element exactly once"
    for rank in batches:
        for batch in rank:
            assert batch == sorted(batch)
            assert len(batch) <= 1 or sum(lengths[index] for index in batch) <= budget
    loads = [sum(lengths[index] for batch in rank for index in batch) for rank in batches]
    assert max(loads) - min(loads) <= max(lengths, default=0), "ranks differ by one element at most"
    for rank in batches:
        if any(not batch for batch in rank):
            assert all(len(batch) <= 1 for batch in rank), "a filler only where nothing is left to split"


def test_balance_of_a_known_case() -> None:
    """Karmarkar and Karp's own example: differencing leaves a difference of 2 for {8, 7, 6, 5, 4}."""
    first, second = (
        sum([8, 7, 6, 5, 4][index] for batch in rank for index in batch) for rank in plan([8, 7, 6, 5, 4], 2, 100).ranks
    )
    assert {first, second} == {16, 14}


def test_small_batches() -> None:
    assert plan([], 2, 10).ranks == [[], []]
    assert plan([7], 2, 10).ranks == [[[0]], [[]]]
    assert plan([50], 1, 10).ranks == [[[0]]]
    assert plan([3, 3, 3, 3], 1, 6).ranks == [[[0, 1], [2, 3]]]


def test_ranks_run_short_of_micro_batches() -> None:
    """Three micro-batches of one rank are matched by fillers on the rank with one long element."""
    batches = plan([30, 10, 10, 10], 2, 10).ranks
    assert sorted(batches) == sorted([[[0], [], []], [[1], [2], [3]]])


def test_many_elements_are_fast_and_even() -> None:
    lengths = np.random.default_rng(0).integers(20, 600, 2048).tolist()
    batches = plan(lengths, 16, 4096).ranks
    loads = [sum(lengths[index] for batch in rank for index in batch) for rank in batches]
    assert max(loads) - min(loads) <= 4
