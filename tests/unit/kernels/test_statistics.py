"""Statistics of a whole, from those of its parts."""

import math

from quadriga.kernels.statistics import mean_statistics, reduce_statistics

PARTS = [{"loss": 1.5, "ratio_max": 2.0, "ratio_min": -1.0}, {"loss": 2.0, "ratio_max": 0.5, "ratio_min": -3.0}]


def test_sums_are_added_and_extremes_compared() -> None:
    assert reduce_statistics(PARTS) == {"loss": 3.5, "ratio_max": 2.0, "ratio_min": -3.0}


def test_extremes_of_an_empty_part_do_not_count() -> None:
    empty = {"loss": 0.0, "ratio_max": -math.inf, "ratio_min": math.inf}
    assert reduce_statistics([empty, PARTS[0], empty]) == PARTS[0]


def test_no_parts_have_no_statistics() -> None:
    assert reduce_statistics([]) == {}


def test_parts_are_not_changed() -> None:
    before = [dict(part) for part in PARTS]
    reduce_statistics(PARTS)
    assert before == PARTS


def test_mean_leaves_extremes_alone() -> None:
    assert mean_statistics({"loss": 3.0, "ratio_max": 4.0, "ratio_min": -2.0}, 2.0) == {
        "loss": 1.5,
        "ratio_max": 4.0,
        "ratio_min": -2.0,
    }
