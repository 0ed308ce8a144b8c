"""Work counted by hand, coefficients that come back from times made of them, calibrations from their file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quadriga.launch.plan import calibration
from quadriga.launch.plan.calibration import Calibration, Call, Generation, fitted
from quadriga.launch.plan.model_shape import ModelShape

LAYER = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8
SHAPE = ModelShape(
    layers=2,
    hidden=8,
    heads=2,
    queries=8,
    keys=8,
    intermediate=16,
    vocab=32,
    gated=True,
    tied=True,
    inside=2 * LAYER,
    body=2 * LAYER + 264,
    body_tensors=2 * 9 + 2,
)
FITS = {"forward": [1.0] * 8, "update": [2.0] * 8}


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
    assert found[1] == 0.0
    assert found[0] > 0


def test_operations_by_hand() -> None:
    """Ten tokens in sequences of 4 and 6: two per parameter and token, half of attention's squares, thrice to train."""
    matrices = 2 * (2 * 656 + 32 * 8) * 10
    attention = 2 * 2 * 2 * 4 * (16 + 36)
    assert Call(SHAPE, "logprobs", [[4, 6]], 1, 4, trains=False).flops == matrices + attention
    trained = Call(SHAPE, "logprobs", [[4, 6]], 1, 4, trains=True)
    assert trained.flops == 3 * (matrices + attention) + 2 * 32 * 8 * 10


def test_ranks_send_three_times_the_weights() -> None:
    """Rajbhandari et al. 2020, section 7.2.2: gathered twice, reduced once; a half of it stays on each of two ranks."""
    call = Call(SHAPE, "logprobs", [[4, 6]], 2, 4, trains=True)
    assert call.sent == pytest.approx(3 * 4 * SHAPE.parameters() / 2)


def test_generation_waits_for_its_longest_wave() -> None:
    generation = Generation(SHAPE, [5] * 10, 7, running=4, width=4)
    assert generation.steps == 3 * 7
    assert generation.drawn == 70


@pytest.fixture
def kept() -> Calibration:
    """A calibration of this machine: four threads are twice as fast as one."""
    halves = {kind: [value / 2 for value in values] for kind, values in FITS.items()}
    machine, versions = calibration.machine("cpu"), calibration.versions()
    calls, date = {1: FITS, 4: halves}, "2026-11-22T10:00:00+00:00"
    return Calibration("cpu", "float32", machine, versions, date, calls, [1.0] * 6, [1.0] * 3, 1.2)


def test_calibrations_are_kept(tmp_path: Path, kept: Calibration) -> None:
    assert calibration.load("cpu", "float32") is None
    assert calibration.save(kept).is_relative_to(tmp_path)
    assert calibration.load("cpu", "float32") == kept


def test_calibrations_of_another_type_or_version_do_not_count(kept: Calibration) -> None:
    calibration.save(kept)
    assert calibration.load("cpu", "bfloat16") is None
    calibration.save(replace(kept, versions={}))
    assert calibration.load("cpu", "float32") is None


def test_speed_between_measured_numbers_of_threads(kept: Calibration) -> None:
    """Four threads are twice as fast as one, so two are faster by the root of two."""
    call = Call(SHAPE, "logprobs", [[4, 6]], 1, 4, trains=False)
    assert kept.seconds(call, 2) == pytest.approx(kept.seconds(call, 1) / 2**0.5)
    assert kept.seconds(call, 4) == pytest.approx(kept.seconds(call, 1) / 2)
