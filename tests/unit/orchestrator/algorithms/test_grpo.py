"""GRPO against plain Python on ragged groups."""

import statistics

from helpers.ragged_groups import ROWS, Rows, check, per_answer
from hypothesis import given

from quadriga.orchestrator.algorithms.grpo import Grpo


def expected(total: float, group: list[float]) -> float:
    if len(group) == 1:
        return 0.0
    return (total - statistics.fmean(group)) / (statistics.stdev(group) + 1e-6)


@given(rows=ROWS)
def test_advantages_on_ragged_groups(rows: Rows) -> None:
    check(Grpo(), rows, per_answer(rows, expected))


def test_by_hand() -> None:
    """Rewards 1, 2 and 3 of one prompt: deviation 1, so -1, 0 and 1; another prompt's equal rewards give 0."""
    rows: Rows = [(0, [0.5, 0.5]), (0, [2.0]), (1, [7.0]), (0, [3.0]), (1, [3.0, 4.0])]
    check(Grpo(), rows, [-1.0, -1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    assert not Grpo.needs_critic
