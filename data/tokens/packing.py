"""Packing: sequences of any length in one flat row, and the plan of ranks and micro-batches.

There is no padding: a batch of N sequences with T tokens in total is one row of T tokens, and `cu_seqlens` holds the
start of each sequence. Position ids and borders come from the real lengths, never from the value of a token.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


@dataclass
class PackedBatch:
    """N sequences, one after another.

    token_ids: [T] int64.
    position_ids: [T] int64, from 0 in every sequence.
    cu_seqlens: [N+1] int32, borders: sequence n is the slice cu_seqlens[n]:cu_seqlens[n+1].
    tokens: per-token fields, [T] each.
    sequences: per-sequence fields, [N, ...] each.
    """

    token_ids: Array
    position_ids: Array
    cu_seqlens: Array
    tokens: dict[str, Array] = field(default_factory=dict)
    sequences: dict[str, Array] = field(default_factory=dict)


@dataclass
class BatchPlan:
    """The rank and micro-batch of every element of a batch.

    ranks: rank -> micro-batch -> element indices, ascending. Every rank has the same number of micro-batches; an empty
    one is a filler that must run with weight zero, so that all ranks meet in every collective.
    """

    ranks: list[list[list[int]]]


def pack(
    sequences: Sequence[Sequence[int]],
    tokens: Mapping[str, Sequence[ArrayLike]] | None = None,
    per_sequence: Mapping[str, ArrayLike] | None = None,
) -> PackedBatch:
    """Concatenate N sequences and their fields.

    tokens: field name -> N arrays, one value per token of the sequence. Floats become float32, integers int64.
    per_sequence: field name -> array of length N.
    Raises ValueError naming the field and the sequence whose length does not fit.
    """
    lengths = [len(sequence) for sequence in sequences]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    for name, arrays in (tokens or {}).items():
        if len(arrays) != len(sequences):
            raise ValueError(f"field {name!r} has {len(arrays)} arrays for {len(sequences)} sequences")
    for name, values in (per_sequence or {}).items():
        if len(np.asarray(values)) != len(sequences):
            raise ValueError(f"field {name!r} has {len(np.asarray(values))} values for {len(sequences)} sequences")
    return PackedBatch(
        token_ids=_flat(sequences, lengths, "token_ids").astype(np.int64),
        position_ids=np.arange(int(cu_seqlens[-1])) - np.repeat(cu_seqlens[:-1].astype(np.int64), lengths),
        cu_seqlens=cu_seqlens,
        tokens={name: _flat(arrays, lengths, name) for name, arrays in (tokens or {}).items()},
        sequences={name: _plain(np.asarray(values)) for name, values in (per_sequence or {}).items()},
    )


def unpack(flat: ArrayLike, cu_seqlens: ArrayLike) -> list[Array]:
    """Invert `pack` for one field: [T, ...] -> N arrays (views), one per sequence.

    Raises ValueError unless `flat` has one entry per token.
    """
    flat, cu_seqlens = np.asarray(flat), np.asarray(cu_seqlens)
    if len(flat) != cu_seqlens[-1]:
        raise ValueError(f"{len(flat)} values for {cu_seqlens[-1]} tokens")
    return np.split(flat, cu_seqlens[1:-1]) if len(cu_seqlens) > 1 else []


def plan(lengths: Sequence[int], ranks: int, token_budget: int) -> BatchPlan:
    """Assign elements to ranks and micro-batches; a pure function of its arguments.

    lengths: tokens of each element. Ranks are balanced by the largest differencing method (Karmarkar and Karp, 1982);
    each rank's elements are then cut into micro-batches of at most `token_budget` tokens, where an element longer
    than the budget is alone. Ranks with fewer micro-batches than others split their heaviest ones in two; where only
    single elements are left, they get fillers. The heaviest micro-batches come first on every rank, so that ranks
    that synchronise in a micro-batch do about the same work. Raises ValueError unless ranks and budget are positive.
    """
    if ranks < 1 or token_budget < 1:
        raise ValueError(f"ranks and token_budget must be positive, not {ranks} and {token_budget}")
    batches = [_cut(part, lengths, token_budget) for part in _balance(lengths, ranks)]
    count = max(len(batch) for batch in batches)
    return BatchPlan([_stretch(batch, lengths, count) for batch in batches])


def _flat(arrays: Sequence[ArrayLike], lengths: Sequence[int], name: str) -> Array:
    parts = [np.asarray(array) for array in arrays]
    for index, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        if len(part) != length:
            raise ValueError(f"field {name!r} of sequence {index} has {len(part)} values for {length} tokens")
    # numpy makes a float array of an empty list, which must not turn the whole field into floats.
    return _plain(np.concatenate([part for part in parts if len(part)] or [np.zeros(0, np.float32)]))


def _plain(values: Array) -> Array:
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    return values.astype(np.int64) if np.issubdtype(values.dtype, np.integer) else values


def _balance(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Split the indices of `lengths` into `parts` lists of nearly equal sums.

    Every element starts as a separate partition: one full bin, the others empty. The two partitions with the widest
    spread are merged, fullest bin with emptiest, until one is left.
    """
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = [
        (-length, index, [(length, [index])] + [(0, []) for _ in range(parts - 1)])
        for index, length in enumerate(lengths)
    ]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, order, first), (_, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        merged = [(a + b, x + y) for (a, x), (b, y) in zip(first, reversed(second), strict=True)]
        merged.sort(key=lambda bin: (-bin[0], bin[1]))
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], order, merged))
    return [sorted(bin) for _, bin in heap[0][2]] if heap else [[] for _ in range(parts)]


def _cut(indices: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Form micro-batches of at most `budget` tokens: longest element first, into the first one with room."""
    batches: list[tuple[int, list[int]]] = []
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        for position, (total, batch) in enumerate(batches):
            if total + lengths[index] <= budget:
                batches[position] = (total + lengths[index], [*batch, index])
                break
        else:
            batches.append((lengths[index], [index]))
    return [sorted(batch) for _, batch in batches]


def _stretch(batches: list[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Split micro-batches until there are `count`, heaviest first, without moving an element to a fuller one."""

    def weight(batch: list[int]) -> tuple[int, list[int]]:
        return -sum(lengths[index] for index in batch), batch

    batches = list(batches)
    while len(batches) < count and (splittable := [batch for batch in batches if len(batch) > 1]):
        heaviest = min(splittable, key=weight)
        batches.remove(heaviest)
        halves = _balance([lengths[index] for index in heaviest], 2)
        batches += [[heaviest[position] for position in half] for half in halves]
    batches += [[] for _ in range(count - len(batches))]
    return sorted(batches, key=lambda batch: (not batch, *weight(batch)))
