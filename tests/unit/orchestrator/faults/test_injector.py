"""The faults of each step."""

import pytest
from pydantic import ValidationError

from quadriga.orchestrator.faults.injector import faults_of_step
from quadriga.orchestrator.settings import FaultSettings

RANKS = {"actor": 2, "critic": 1, "reference": 1, "reward": 1, "rollout": 2}


def test_planned_faults_need_their_step_and_their_process() -> None:
    planned = [
        {"action": "kill", "role": "actor", "rank": 1, "step": 3, "phase": "update"},
        {"action": "stop", "role": "rollout", "rank": 2, "step": 3},
        {"action": "kill", "role": "driver", "step": 3, "after": 0.5},
        {"action": "kill", "role": "critic", "step": 4},
    ]
    settings = FaultSettings.model_validate({"planned": planned})
    assert [key for key, _ in faults_of_step(settings, 3, RANKS)] == ["planned 0", "planned 2"]
    assert [key for key, _ in faults_of_step(settings, 4, {"actor": 2})] == []


def test_random_faults_follow_their_seed_and_rate() -> None:
    def drawn(seed: int) -> list[tuple[str, str, int, float]]:
        random = {"seed": seed, "rate": 0.3, "within": 2.0, "roles": ["actor", "rollout", "driver"]}
        settings = FaultSettings.model_validate({"random": random})
        faults = [fault for step in range(1, 2001) for _, fault in faults_of_step(settings, step, RANKS)]
        return [(fault.action, fault.role, fault.rank, fault.after) for fault in faults]

    one = drawn(1)
    assert one == drawn(1)
    assert one != drawn(2)
    assert abs(len(one) - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5
    assert {(role, rank) for _, role, rank, _ in one} == {
        ("actor", 0),
        ("actor", 1),
        ("rollout", 0),
        ("rollout", 1),
        ("driver", 0),
    }
    assert all(0 <= after <= 2.0 for *_, after in one)


def test_the_driver_can_only_be_killed() -> None:
    with pytest.raises(ValidationError, match="the driver can only be killed"):
        FaultSettings.model_validate({"planned": [{"action": "stop", "role": "driver", "step": 1}]})
