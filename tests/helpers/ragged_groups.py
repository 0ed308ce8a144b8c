"""Ragged groups of answers with token rewards, and their advantages in plain Python."""

import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from quadriga.orchestrator.algorithms.base import Estimator, Steps

Rows = list[tuple[int, list[float]]]
"""(group, token rewards) per sample."""

ROWS: st.SearchStrategy[Rows] = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=5)), min_size=1, max_size=9
)


def steps(rows: Rows) -> Steps:
    """The rows laid end to end, groups numbered as they come."""
    order: dict[int, int] = {}
    groups = np.array([order.setdefault(group, len(order)) for group, _ in rows])
    rewards = np.array([x for _, tokens in rows for x in tokens], np.float64)
    offsets = np.cumsum([0] + [len(tokens) for _, tokens in rows])
    scores = np.array([tokens[-1] for _, tokens in rows], np.float64)
    return Steps(rewards, None, scores, groups, offsets)


def totals_of(rows: Rows) -> dict[int, list[float]]:
    """The sums of token rewards per group."""
    found: dict[int, list[float]] = {}
    for group, tokens in rows:
        found.setdefault(group, []).append(math.fsum(tokens))
    return found


def per_answer(rows: Rows, advantage: Callable[[float, list[float]], float]) -> list[float]:
    """Each answer's advantage, from its total and those of its group, on all of its tokens, laid end to end."""
    groups = totals_of(rows)
    return [advantage(math.fsum(tokens), groups[group]) for group, tokens in rows for _ in tokens]


def check(estimator: Estimator, rows: Rows, expected: list[float]) -> None:
    """Compare an estimator without a critic with what is expected on each token.

    Totals are sums of at most five numbers below 5, which float64 rounds by less than 1e-14; a group that is equal but
    for that divides it by an epsilon of 1e-6 at the least.
    """
    found = estimator(steps(rows))
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-6, atol=1e-6)
    assert found.returns is None
