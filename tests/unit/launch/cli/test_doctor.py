"""`quadriga doctor` prints the results of the checks and counts the problems."""

import pytest
from rich.console import Console

from quadriga.launch.checks.report import CheckResult
from quadriga.launch.cli.doctor import doctor


def test_doctor_counts_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        CheckResult("ok", "a", "fine"),
        CheckResult("problem", "b", "broken [x]"),
        CheckResult("note", "c", "odd"),
    ]
    monkeypatch.setattr("quadriga.launch.cli.doctor.check_machine", lambda: iter(results))
    console = Console(record=True, width=100)
    assert doctor(None, console) == 1
    text = console.export_text()
    assert "FAIL  b: broken [x]" in text
    assert "1 problem to fix." in text
