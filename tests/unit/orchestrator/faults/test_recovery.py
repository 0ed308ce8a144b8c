"""Recovery: the budgets of losses, and that the first failure is the one reported."""

from typing import Any

import pytest

from quadriga.actors.settings import RecoverySettings
from quadriga.data.errors import Fault, Lost
from quadriga.orchestrator.faults.recovery import Recovery


def lost(name: str, phase: str = "update") -> Lost:
    """Return the loss of one process."""
    return Lost(f"{name} died: killed", phase=phase, process=name)


def test_losses_are_recorded_until_there_are_too_many() -> None:
    events: list[dict[str, Any]] = []
    recovery = Recovery(RecoverySettings(max_losses=2), lambda event, **fields: events.append(fields))
    recovery.step = 4
    recovery.note(lost("actor 1"))
    recovery.note(lost("rollout 0", "generate"))
    recovery.step = 5
    with pytest.raises(Fault) as stopped:
        recovery.note(lost("critic 0", "values"))
    assert [(e["step"], e["phase"], e["process"]) for e in events] == [
        (4, "update", "actor 1"),
        (4, "generate", "rollout 0"),
    ]
    message = str(stopped.value)
    assert message.startswith("update: actor 1 died: killed (step 4). The run stops because these are more than")
    places = ["(1) step 4, update: actor 1", "(2) step 4, generate", "(3) step 5"]
    assert [message.index(place) for place in places] == sorted(message.index(place) for place in places)
    assert not isinstance(stopped.value, Lost)  # a Lost would be recovered from


def test_repeated_losses_at_one_place_stop_the_run() -> None:
    recovery = Recovery(RecoverySettings(max_losses=100, max_at_one_place=2))
    for step in range(10):  # another step is another place
        recovery.step = step
        recovery.note(lost("actor 0"))
    recovery.note(lost("actor 0"))
    with pytest.raises(Fault, match=r"more than recovery\.max_at_one_place = 2 of them at the same place"):
        recovery.note(lost("actor 0"))


def test_without_a_budget_the_first_loss_is_the_fault() -> None:
    with pytest.raises(Fault) as stopped:
        Recovery(RecoverySettings(max_losses=0)).note(lost("critic 0"))
    assert str(stopped.value) == "update: critic 0 died: killed"
    assert (stopped.value.phase, stopped.value.process) == ("update", "critic 0")
