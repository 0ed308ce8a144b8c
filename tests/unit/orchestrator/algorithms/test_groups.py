"""Statistics of groups: those of one answer and those of equal rewards teach nothing and are counted."""

from helpers.ragged_groups import ROWS, Rows, steps
from hypothesis import given

from quadriga.orchestrator.rl.report import silent_groups


def test_groups_by_hand() -> None:
    rows: Rows = [(0, [1.0, 2.0]), (1, [5.0]), (0, [3.0]), (2, [1.0]), (2, [2.0])]
    found = steps(rows)
    assert found.totals().tolist() == [3, 5, 3, 1, 2]
    assert found.group_sizes().tolist() == [2, 1, 2, 2, 2]
    assert found.group_means(found.totals()).tolist() == [3, 5, 3, 1.5, 1.5]
    assert found.differs(found.totals()).tolist() == [False, False, False, True, True]
    assert found.group_stats() == {"groups": 3, "groups_single": 1, "groups_equal": 1}


def test_silent_groups_are_said() -> None:
    assert silent_groups({"groups": 3, "groups_single": 0, "groups_equal": 0}) is None
    assert silent_groups({}) is None
    sentence = silent_groups({"groups": 3, "groups_single": 1, "groups_equal": 2})
    assert sentence is not None
    assert sentence.startswith("of 3 prompts, 2 have answers of equal reward and 1 a single answer")


@given(rows=ROWS)
def test_groups_of_one_are_counted(rows: Rows) -> None:
    groups = [group for group, _ in rows]
    found = steps(rows).group_stats()
    assert found["groups"] == len(set(groups))
    assert found["groups_single"] == sum(groups.count(group) == 1 for group in set(groups))
    equal = steps([(group, [1.0]) for group in groups]).group_stats()
    assert equal["groups_equal"] == sum(groups.count(group) > 1 for group in set(groups))
