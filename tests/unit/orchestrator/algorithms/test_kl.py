"""KL estimates and their controller, whitening."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.orchestrator.algorithms.kl import KLController, kl_penalty
from quadriga.orchestrator.algorithms.settings import AdaptiveKL, KLSettings
from quadriga.orchestrator.algorithms.whitening import whiten


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.booleans())
def test_whiten(values: list[float], shift: bool) -> None:
    found = whiten(values, shift_mean=shift)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / len(values)
    assert found.mean() == pytest.approx(0.0 if shift else mean, abs=1e-6)
    assert found.var() == pytest.approx(variance / (variance + 1e-8), abs=1e-6)


@given(st.integers(0, 99))
def test_kl_estimators_against_the_exact_sum(seed: int) -> None:
    """Detail 9: under the policy k1 and k3 average KL(policy || reference); k2 and k3 are never negative."""
    rng = np.random.default_rng(seed)
    policy, reference = rng.dirichlet(np.ones(7) * 3), rng.dirichlet(np.ones(7) * 3)
    exact = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    k1, k2, k3 = (kl_penalty(np.log(policy), np.log(reference), name) for name in ("k1", "k2", "k3"))
    assert (policy * k1).sum() == pytest.approx(exact, abs=1e-12)
    assert (policy * k3).sum() == pytest.approx(exact, abs=1e-12)
    np.testing.assert_allclose(k2, k1**2 / 2)
    assert (k2 >= 0).all() and (k3 >= -1e-15).all()


def test_k3_is_finite_for_any_log_ratio() -> None:
    """Reported: x below -709 overflowed to inf, and whitening made NaN of it."""
    found = kl_penalty([-1000.0, -20.0, 20.0, 1000.0], np.zeros(4), "k3")
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:2], np.expm1(20.0) - 20.0)
    np.testing.assert_array_equal(found[2:], np.expm1(-20.0) + 20.0)


def test_adaptive_coefficient() -> None:
    """Detail 10: error clipped to ±0.2, scaled by n / horizon; the coefficient is what a checkpoint keeps."""
    controller = KLController(KLSettings(coefficient=0.1, adaptive=AdaptiveKL(target=6.0, horizon=10000)))
    controller.update(kl_per_sample=6.6, samples=512)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 512 / 10000))
    controller.update(kl_per_sample=600.0, samples=512)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.0512) * (1 + 0.2 * 0.0512))
    resumed = KLController(controller.settings)
    resumed.load_state_dict(controller.state_dict())
    resumed.update(0.0, 512)
    controller.update(0.0, 512)
    assert resumed.coefficient == controller.coefficient
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.0512) * (1 + 0.2 * 0.0512) * (1 - 0.2 * 0.0512))


def test_fixed_coefficient_stays() -> None:
    controller = KLController(KLSettings(coefficient=0.1))
    controller.update(100.0, 512)
    controller.load_state_dict({"coefficient": 0.7})
    assert controller.coefficient == 0.1
