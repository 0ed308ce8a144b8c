"""Seconds of steps on known GPUs, and of calls that overlap."""

from typing import Any

import pytest

from quadriga.launch.plan import step_time

P8 = 8_030_261_248
"""Parameters of Llama 3.1 8B, as published."""


def test_seconds_of_a_known_gpu(plan_sft: Any) -> None:
    """An update of 8 x 1024 tokens on 8 H100: 6 operations per parameter and token at 40 % of 989 TFLOP/s, at least."""
    plan = plan_sft("cluster.actor.ranks=8", "batch_size=8")
    least = 6 * P8 * 1024 / (0.4 * 989e12)
    assert least < plan.seconds["step"] < 5 * least
    assert "published peaks of an H100" in plan.basis


def test_models_on_one_gpu_take_turns(plan_ppo: Any) -> None:
    """Four equal models read the same answers: on GPUs of their own at once, on shared ones one after the other."""
    sharing = "cluster.placement=[[actor, critic, reference, reward], [rollout]]"
    shared, colocated = plan_ppo(sharing).seconds, plan_ppo().seconds
    separate = plan_ppo("cluster.placement=separate").seconds
    assert shared["forward"] == colocated["forward"]
    assert shared["update"] == colocated["update"]
    assert 3.5 < shared["forward"] / separate["forward"] < 4  # two of the four have no vocabulary to multiply with
    assert 1.8 < shared["update"] / separate["update"] < 2


def test_no_seconds_without_calibration(plan_sft: Any) -> None:
    plan = plan_sft("cluster.device=cpu", "cluster.dtype=float32")
    assert plan.seconds is None
    assert "quadriga plan --calibrate" in plan.basis


def test_calls_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four calls of a second on two cores take two, and more when they slow each other down."""
    monkeypatch.setattr(step_time, "cores", lambda: 2)
    assert step_time._on_cores([(1.0, 1, 1)] * 4, 1.0) == 2.0
    assert step_time._on_cores([(1.0, 1, 1)] * 4, 1.5) == 3.0
    assert step_time._on_cores([(3.0, 1, 1), (1.0, 1, 1)], 1.0) == 3.0
    assert step_time._on_cores([(1.0, 1, 2)], 1.5) == 1.0
