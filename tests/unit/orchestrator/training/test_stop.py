"""Signals that ask for a clean stop."""

import os
import signal
from pathlib import Path

import pytest

from quadriga.data.rundir import RunDir
from quadriga.orchestrator.training.stop import Stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_asks_for_a_stop(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with Stop(RunDir(tmp_path)).listening() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) == before


def test_ignored_hangup_stays_ignored(tmp_path: Path) -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(RunDir(tmp_path)).listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
