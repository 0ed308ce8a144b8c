"""Health of a rollout worker: its transitions, and that it only ever serves current weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.orchestrator.cluster.health import Health, State


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def healthy(clock: Clock, version: int = 3) -> Health:
    """Return the health of a worker that is up and holds these weights."""
    health = Health(10.0, clock)
    health.on_started()
    health.on_weights_loaded(version)
    return health


def test_a_late_worker_is_suspect_then_dead() -> None:
    clock = Clock()
    health = healthy(clock)
    clock.now += 1000  # nothing was requested, so this is not silence
    health.on_request()
    assert health.on_timeout_check() is State.HEALTHY
    clock.now += 5.1
    assert health.on_timeout_check() is State.SUSPECT
    assert health.serves(3)
    health.on_response()
    assert health.state is State.HEALTHY
    health.on_request()
    clock.now += 10.1
    assert health.on_timeout_check() is State.DEAD
    assert not health.serves(3)


def test_a_restarted_worker_serves_only_after_loading_weights() -> None:
    health = healthy(Clock())
    health.mark_dead()
    served = [health.serves(3)]
    health.mark_restarting()
    served.append(health.serves(3))
    health.on_started()
    served.append(health.serves(3))
    assert served == [False] * 3
    assert health.state is State.STALE
    health.on_weights_loaded(4)
    assert health.serves(4)
    assert not health.serves(3)


@pytest.mark.parametrize("step", ["on_started", "mark_restarting"])
def test_a_healthy_worker_cannot_start(step: str) -> None:
    with pytest.raises(ValueError, match="a worker that is healthy cannot become"):
        getattr(healthy(Clock()), step)()


STEPS = [
    "on_started",
    "on_weights_loaded",
    "mark_stale",
    "on_response",
    "on_request",
    "on_timeout_check",
    "mark_dead",
    "mark_restarting",
]


@given(st.lists(st.sampled_from(STEPS)))
def test_it_serves_only_the_version_loaded_since_its_start(steps: list[str]) -> None:
    clock, holds, version = Clock(), None, 0
    health = Health(10.0, clock)
    for step in steps:
        clock.now += 4
        before = health.state
        try:
            if step == "on_weights_loaded":
                version += 1
                health.on_weights_loaded(version)
            else:
                getattr(health, step)()
        except ValueError:
            assert health.state is before
            continue
        if step == "on_weights_loaded":
            holds = version
        if step in ("mark_dead", "mark_stale") or health.state is State.DEAD:
            holds = None
        assert [v for v in range(version + 2) if health.serves(v)] == ([] if holds is None else [holds])
