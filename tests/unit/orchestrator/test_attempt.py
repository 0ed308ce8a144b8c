"""The record of a failed attempt in run.json."""

import errno
from pathlib import Path

import pytest

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.attempt import failure_recorded


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory with an attempt under way."""
    run = RunDir.create(tmp_path / "run")
    run.start_attempt({})
    return run


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("set the batch size"), "failed", "set the batch size"),
        (Fault("died", phase="update"), "failed", "update: died"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "failed", "FileNotFoundError: [Errno 2] no such file"),
        (KeyboardInterrupt(), "interrupted", "stopped by the user before the step was finished"),
    ],
)
def test_an_exception_is_recorded_and_let_through(run: RunDir, error: BaseException, status: str, text: str) -> None:
    with pytest.raises(type(error)) as raised, failure_recorded(run):
        raise error
    assert raised.value is error
    attempt = run.read_run()["attempts"][-1]
    assert (attempt["status"], attempt["error"]) == (status, text)


def test_a_full_disk_is_a_fault_with_its_cause(run: RunDir) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    sentence = r"commit: .* cannot be written: No space left on device"
    with pytest.raises(Fault, match=sentence) as raised, failure_recorded(run):
        raise full
    assert raised.value.__cause__ is full
    assert run.read_run()["attempts"][-1]["error"] == str(raised.value)
