"""Dr. GRPO against plain Python on ragged groups."""

import statistics

from helpers.ragged_groups import ROWS, Rows, check, per_answer
from hypothesis import given

from quadriga.orchestrator.algorithms.dr_grpo import DrGrpo


@given(rows=ROWS)
def test_advantages_on_ragged_groups(rows: Rows) -> None:
    check(DrGrpo(), rows, per_answer(rows, lambda total, group: total - statistics.fmean(group)))


def test_by_hand() -> None:
    """Rewards 1, 2 and 6 of one prompt: mean 3; another prompt's equal rewards give 0."""
    rows: Rows = [(0, [0.5, 0.5]), (0, [2.0]), (1, [7.0]), (0, [6.0]), (1, [3.0, 4.0])]
    check(DrGrpo(), rows, [-2.0, -2.0, -1.0, 0.0, 3.0, 0.0, 0.0])
