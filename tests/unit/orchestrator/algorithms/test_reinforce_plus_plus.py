"""REINFORCE++ and its baseline form against plain Python on ragged groups."""

import statistics

from helpers.ragged_groups import ROWS, Rows, check, per_answer
from hypothesis import given
from hypothesis import strategies as st

from quadriga.orchestrator.algorithms.reinforce_plus_plus import ReinforcePlusPlus, ReinforcePlusPlusBaseline


def whitened(values: list[float]) -> list[float]:
    """Mean 0 and variance 1 over all tokens, where 1e-8 is added to the variance."""
    mean = statistics.fmean(values)
    deviation = (statistics.fmean([(x - mean) ** 2 for x in values]) + 1e-8) ** 0.5
    return [(x - mean) / deviation for x in values]


@given(rows=ROWS, gamma=st.floats(0.5, 1.0))
def test_discounted_sums_on_ragged_answers(rows: Rows, gamma: float) -> None:
    returns = [
        sum(gamma ** (later - t) * tokens[later] for later in range(t, len(tokens)))
        for _, tokens in rows
        for t in range(len(tokens))
    ]
    check(ReinforcePlusPlus(gamma=gamma), rows, whitened(returns))


@given(rows=ROWS)
def test_baseline_on_ragged_groups(rows: Rows) -> None:
    centred = per_answer(rows, lambda total, group: total - statistics.fmean(group))
    check(ReinforcePlusPlusBaseline(), rows, whitened(centred))


def test_by_hand() -> None:
    """Rewards to come: 3 and 2, and -1; their mean is 4 / 3."""
    rows: Rows = [(0, [1.0, 2.0]), (0, [-1.0])]
    deviation = (((3 - 4 / 3) ** 2 + (2 - 4 / 3) ** 2 + (-1 - 4 / 3) ** 2) / 3) ** 0.5
    check(ReinforcePlusPlus(), rows, [(x - 4 / 3) / deviation for x in (3, 2, -1)])
