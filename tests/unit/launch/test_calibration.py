"""Coefficients come back from times made of them, calibrations from their file; overlapping calls share the cores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quadriga.launch.plan import calibration, seconds
from quadriga.launch.plan.calibration import Calibration, fitted
from quadriga.launch.plan.seconds import Call, Generation
from quadriga.launch.plan.shapes import ModelShape
from quadriga.launch.plan.work import evenly, micro_batches

SHAPE = ModelShape("llama", 2, 8, 2, 2, 4, 16, 32, True, True, 0, layer=656, layer_tensors=9, around=264)
"""One layer: 4 x 8 x 8 + 3 x 8 x 16 + 2 x 8."""


def test_fit_finds_what_times_were_made_of() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([0.01, 2e-4, 0.0, 3e-11])
    features = generator.uniform(0.1, 1.0, (30, 4)) * np.array([1.0, 100.0, 10.0, 1e10])
    found = fitted([(row.tolist(), float(row @ truth)) for row in features])
    assert found == pytest.approx(truth, rel=1e-6, abs=1e-9)


def test_fit_is_never_negative() -> None:
    """Least squares alone would give the second feature -1."""
    rows = [([1.0, 0.0], 2.0), ([1.0, 1.0], 1.0), ([1.0, 0.0], 2.0), ([1.0, 1.0], 1.0)]
    found = fitted(rows)
    assert found[1] == 0.0 and found[0] > 0


def test_operations_by_hand() -> None:
    """Ten tokens in sequences of 4 and 6: two a parameter and token, attention's half squares, thrice for training."""
    call = Call(SHAPE, "logprobs", [[4, 6]], 1, 4, trains=False)
    matrices = 2 * (2 * 656 + 32 * 8) * 10
    attention = 2 * 2 * 2 * 4 * (16 + 36)
    assert call.flops == matrices + attention
    assert replace(call, trains=True).flops == 3 * (matrices + attention) + 2 * 32 * 8 * 10


def test_ranks_send_three_times_the_weights() -> None:
    """Rajbhandari et al. 2020, section 7.2.2: gathered twice, reduced once; a half of it stays on each of two ranks."""
    call = Call(SHAPE, "logprobs", [[4, 6]], 2, 4, trains=True)
    assert call.sent == pytest.approx(3 * 4 * SHAPE.parameters() / 2)


def test_generation_waits_for_its_longest_wave() -> None:
    generation = Generation(SHAPE, [5] * 10, 7, running=4, width=4)
    assert generation.steps == 3 * 7 and generation.drawn == 70


def test_elements_are_taken_evenly() -> None:
    assert evenly([[3], [1], [2], [4]], 2) == [[2], [4]]
    assert evenly([[1], [9]], 4) == [[1], [1], [9], [9]]
    assert sorted(map(sorted, micro_batches([[2, 3], [4], [5]], 1, 9))) == [[2, 3, 4], [5]]


def test_calls_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four calls of a second on two cores take two, and more when they slow each other down."""
    monkeypatch.setattr(seconds, "cores", lambda: 2)
    assert seconds._on_cores([(1.0, 1, 1)] * 4, 1.0) == 2.0
    assert seconds._on_cores([(1.0, 1, 1)] * 4, 1.5) == 3.0
    assert seconds._on_cores([(3.0, 1, 1), (1.0, 1, 1)], 1.0) == 3.0
    assert seconds._on_cores([(1.0, 1, 2)], 1.5) == 1.0


def test_calibrations_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of other versions, or of another type, is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration.load("cpu", "float32") is None
    fits = {"forward": [1.0] * 8, "update": [2.0] * 8}
    kept = Calibration(
        "cpu",
        "float32",
        calibration.machine("cpu"),
        calibration.versions(),
        "2026-11-22T10:00:00+00:00",
        {1: fits, 4: {kind: [value / 2 for value in values] for kind, values in fits.items()}},
        [1.0] * 6,
        [1.0] * 3,
        1.2,
    )
    assert calibration.save(kept).is_relative_to(tmp_path)
    assert calibration.load("cpu", "float32") == kept
    assert calibration.load("cpu", "bfloat16") is None
    calibration.save(replace(kept, versions={}))
    assert calibration.load("cpu", "float32") is None
    # Four threads are twice as fast as one, so two are faster by the root of two.
    call = Call(SHAPE, "logprobs", [[4, 6]], 1, 4, trains=False)
    assert kept.call(call, 2) == pytest.approx(kept.call(call, 1) / 2**0.5)
    assert kept.call(call, 4) == pytest.approx(kept.call(call, 1) / 2)
