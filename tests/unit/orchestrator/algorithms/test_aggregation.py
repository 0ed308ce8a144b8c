"""Aggregations as weights and units, against sums written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.orchestrator.algorithms.aggregation import Aggregation, token_weights

MASKS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), min_size=1, max_size=6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@given(masks=MASKS, seed=st.integers(0, 99))
def test_weighted_sum_over_units_is_the_mean(aggregation: Aggregation, masks: list[list[int]], seed: int) -> None:
    rng, limit = np.random.default_rng(seed), 7
    losses = [rng.normal(size=len(mask)) for mask in masks]
    weights, units = token_weights(masks, aggregation, limit)
    if sum(units) == 0:
        return
    found = sum(float((w * x).sum()) for w, x in zip(weights, losses, strict=True)) / sum(units)
    sums = [float((np.asarray(mask) * x).sum()) for mask, x in zip(masks, losses, strict=True)]
    counts = [sum(mask) for mask in masks]
    expected = {
        "token": sum(sums) / max(1, sum(counts)),
        "sequence": sum(s / max(1, n) for s, n in zip(sums, counts, strict=True)) / len(masks),
        "constant": sum(sums) / (limit * len(masks)),
    }[aggregation]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
