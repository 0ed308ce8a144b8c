"""Intervals, the sign test and calibration against closed forms, exact fractions and coverage."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.orchestrator.evaluation.statistics import (
    Interval,
    binomial_p_value,
    expected_calibration_error,
    pair_accuracy,
    wilson_interval,
    win_rate,
)

Z = 1.959963984540054  # the 0.975 quantile of the normal distribution


def test_wilson_bounds_are_the_limits_of_the_score_test() -> None:
    for successes, n in ((7, 10), (150.5, 301), (1, 40), (33, 40)):
        interval = wilson_interval(successes, n)
        for bound in (interval.low, interval.high):
            z = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert z == pytest.approx(Z, rel=1e-12)


def test_wilson_at_the_edges_has_a_closed_form() -> None:
    none, all_of_them = wilson_interval(0, 20), wilson_interval(20, 20)
    assert (none.low, none.high) == pytest.approx((0, Z**2 / (20 + Z**2)), abs=1e-15)
    assert (all_of_them.low, all_of_them.high) == pytest.approx((20 / (20 + Z**2), 1), abs=1e-15)
    empty = wilson_interval(0, 0)
    assert math.isnan(empty.mean)
    assert (empty.low, empty.high, empty.n) == (0, 1, 0)
    with pytest.raises(ValueError, match="11 successes in 10"):
        wilson_interval(11, 10)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))))
def test_wilson_mirrors_and_holds_its_mean(halves: tuple[int, int]) -> None:
    successes, n = halves[0] / 2, halves[1]
    one, other = wilson_interval(successes, n), wilson_interval(n - successes, n)
    assert 0 <= one.low <= one.mean <= one.high <= 1
    assert one.low < one.high
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)


def test_win_rate_counts_ties_half_and_prompts_once() -> None:
    ours, theirs = [3, 1, 2, 5, 5], [1, 3, 2, 4, 5.05]
    assert win_rate(ours, theirs).mean == (1 + 0 + 0.5 + 1 + 0) / 5
    assert win_rate(ours, theirs, margin=0.1).mean == (1 + 0 + 0.5 + 1 + 0.5) / 5
    assert win_rate(ours, theirs, margin=0.1) == wilson_interval(3, 5)
    several = win_rate([[1, 2], [0, 0]], [[0, 3], [0, 1]])
    assert several == wilson_interval(0.5 + 0.25, 2)
    with pytest.raises(ValueError, match="paired"):
        win_rate([1, 2], [1])
    with pytest.raises(ValueError, match="finite"):
        win_rate([1, math.nan], [1, 2])


def test_win_rate_covers_the_truth_with_ties_and_correlation() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        prompt = rng.normal(0.3, 1, (100, 1))  # how much better ours is on this prompt: shared by its 4 samples
        difference = np.round(prompt + rng.normal(0, 0.5, (100, 4)))  # rounding makes ties
        interval = win_rate(difference, np.zeros((100, 4)))
        covered += interval.low <= TRUTH <= interval.high
    assert covered / 400 >= 0.93


# E[1(d > 0) + 0.5 * 1(d = 0)] for d = round(N(0.3, 1.25)): P(x > 0.5) + P(-0.5 < x < 0.5) / 2
_x = NormalDist(0.3, math.sqrt(1.25))
TRUTH = (1 - _x.cdf(0.5)) + (_x.cdf(0.5) - _x.cdf(-0.5)) / 2


def test_an_interval_is_printed_with_its_bounds_and_count() -> None:
    assert str(Interval(0.5, 0.25, 0.75, 2)) == "0.500 [0.250, 0.750], n = 2"


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(1, 9))
def test_binomial_tail_equals_exact_fractions(case: tuple[int, int], tenths: int) -> None:
    successes, n = case
    p = Fraction(tenths, 10)
    exact = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))
    assert binomial_p_value(successes, n, tenths / 10) == pytest.approx(float(exact), rel=1e-10)


def test_binomial_tail_of_many_trials() -> None:
    exact = Fraction(sum(math.comb(2000, k) for k in range(1050, 2001)), 2**2000)
    assert binomial_p_value(1050, 2000) == pytest.approx(float(exact), rel=1e-10)
    assert binomial_p_value(0, 5) == 1.0
    assert binomial_p_value(5, 5) == pytest.approx(1 / 32, rel=1e-12)
    with pytest.raises(ValueError, match="6 successes in 5"):
        binomial_p_value(6, 5)


def test_calibration_error_by_hand() -> None:
    # Bins of ten: (0.6, 0.7] has 0.65 and 0.7, accuracy 1/2; (0.9, 1] has three of 0.95, accuracy 2/3.
    error = expected_calibration_error([0.65, 0.7, 0.95, 0.95, 0.95], [1, 0, 1, 1, 0])
    assert error == pytest.approx((2 * abs(0.5 - 0.675) + 3 * abs(2 / 3 - 0.95)) / 5, rel=1e-12)
    assert expected_calibration_error([1.0, 0.0], [1, 0]) == 0
    assert math.isnan(expected_calibration_error([], []))
    with pytest.raises(ValueError, match="outside"):
        expected_calibration_error([1.2], [1])


def test_pair_accuracy_tells_overconfident_from_calibrated() -> None:
    rng = np.random.default_rng(1)
    margin = rng.normal(0, 2, 40000)
    truth = np.where(rng.random(40000) < 1 / (1 + np.exp(-np.abs(margin))), np.abs(margin), -np.abs(margin))
    calibrated, overconfident = pair_accuracy(truth), pair_accuracy(5 * truth)
    assert calibrated.calibration_error < 0.015 < 0.1 < overconfident.calibration_error
    expected = float(np.mean(1 / (1 + np.exp(-np.abs(margin)))))
    assert calibrated.accuracy.low < expected < calibrated.accuracy.high
    assert overconfident.accuracy == calibrated.accuracy
    assert pair_accuracy([1.0, 0.0, -1.0, 2.0]).accuracy.mean == 2.5 / 4
