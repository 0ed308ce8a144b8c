from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.actors.settings import OptimizerSettings
from quadriga.orchestrator.training.lr_schedule import lr


def rates(total: int, **kwargs: object) -> list[float]:
    settings = OptimizerSettings(**kwargs)  # type: ignore[arg-type]
    return [lr(step, total, settings) for step in range(total)]


def test_warmup_starts_above_zero_and_ends_at_the_full_rate() -> None:
    """Detail 19: four warm-up steps are 1/5 .. 4/5 of the rate."""
    found = rates(7, lr=10.0, warmup_steps=4, schedule="constant")
    assert found == pytest.approx([2, 4, 6, 8, 10, 10, 10])


def test_linear() -> None:
    assert rates(6, lr=1.0, warmup_steps=1, schedule="linear", min_lr_ratio=0.2) == pytest.approx(
        [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_cosine() -> None:
    """Half-way stands the mean of both ends; at a third, cos(60°) = 1/2 gives three quarters."""
    assert rates(7, lr=1.0, schedule="cosine", min_lr_ratio=0.0) == pytest.approx(
        [1, 0.5 + 0.75**0.5 / 2, 0.75, 0.5, 0.25, 0.5 - 0.75**0.5 / 2, 0], abs=1e-12
    )
    found = rates(101, lr=2e-5, schedule="cosine", min_lr_ratio=0.1)
    assert found[0] == pytest.approx(2e-5) and found[50] == pytest.approx(1.1e-5) and found[100] == pytest.approx(2e-6)


@given(
    total=st.integers(1, 40),
    warmup=st.integers(0, 50),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    floor=st.floats(0, 1),
)
def test_rises_then_falls_within_bounds(total: int, warmup: int, schedule: str, floor: float) -> None:
    found = rates(total, lr=1.0, warmup_steps=warmup, schedule=schedule, min_lr_ratio=floor)
    assert all(0 <= rate <= 1 + 1e-12 for rate in found)
    assert found[: warmup + 1] == sorted(found[: warmup + 1])
    falling = found[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    settings = OptimizerSettings(lr=1.0, warmup_steps=warmup, schedule=schedule, min_lr_ratio=floor)  # type: ignore[arg-type]
    end = 1.0 if schedule == "constant" else floor
    assert lr(max(total, warmup) + 1000, total, settings) == pytest.approx(end), "steps after the last keep its rate"
