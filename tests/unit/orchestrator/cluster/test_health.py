"""The health of a rollout worker: what may follow what, and that nothing but current weights is ever served."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.orchestrator.cluster.health import Health, State


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def healthy(clock: Clock, version: int = 3) -> Health:
    """A worker that is up and holds these weights."""
    health = Health(10.0, clock)
    health.started()
    health.loaded(version)
    return health


def test_a_late_worker_is_suspect_then_dead() -> None:
    clock = Clock()
    health = healthy(clock)
    clock.now += 1000  # nobody asked it anything: that is no silence
    health.asked()
    assert health.waited() is State.HEALTHY
    clock.now += 5.1
    assert health.waited() is State.SUSPECT and health.serves(3)
    health.answered()
    assert health.state is State.HEALTHY
    health.asked()
    clock.now += 10.1
    assert health.waited() is State.DEAD and not health.serves(3)


def test_a_worker_that_came_back_serves_nothing_before_it_has_the_weights() -> None:
    health = healthy(Clock())
    health.died()
    served = [health.serves(3)]
    health.restarting()
    served.append(health.serves(3))
    health.started()
    served.append(health.serves(3))
    assert served == [False] * 3 and health.state is State.STALE
    health.loaded(4)
    assert health.serves(4) and not health.serves(3)


@pytest.mark.parametrize("step", ["started", "restarting"])
def test_a_healthy_worker_cannot_start(step: str) -> None:
    with pytest.raises(ValueError, match="a worker that is healthy cannot become"):
        getattr(healthy(Clock()), step)()


@given(
    st.lists(st.sampled_from(["started", "loaded", "outdated", "answered", "asked", "waited", "died", "restarting"]))
)
def test_it_serves_exactly_the_version_it_was_last_given_since_its_start(steps: list[str]) -> None:
    clock, holds, version = Clock(), None, 0
    health = Health(10.0, clock)
    for step in steps:
        clock.now += 4
        before = health.state
        try:
            if step == "loaded":
                version += 1
                health.loaded(version)
            else:
                getattr(health, step)()
        except ValueError:
            assert health.state is before
            continue
        if step == "loaded":
            holds = version
        if step in ("died", "outdated") or health.state is State.DEAD:
            holds = None
        assert [v for v in range(version + 2) if health.serves(v)] == ([] if holds is None else [holds])
