"""RLOO against plain Python on ragged groups."""

import math

from helpers.ragged_groups import ROWS, Rows, check, per_answer
from hypothesis import given

from quadriga.orchestrator.algorithms.rloo import Rloo


def expected(total: float, group: list[float]) -> float:
    return total - (math.fsum(group) - total) / (len(group) - 1) if len(group) > 1 else 0.0


@given(rows=ROWS)
def test_advantages_on_ragged_groups(rows: Rows) -> None:
    check(Rloo(), rows, per_answer(rows, expected))


def test_by_hand() -> None:
    """Rewards 1, 2 and 6 of one prompt: the others' means are 4, 3.5 and 1.5; a single answer has no others."""
    rows: Rows = [(0, [0.5, 0.5]), (0, [2.0]), (1, [7.0]), (0, [6.0])]
    check(Rloo(), rows, [-3.0, -3.0, -1.5, 0.0, 4.5])
