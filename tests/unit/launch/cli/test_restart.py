"""The parent that restarts runs: which exits are worth another attempt, and which are not."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from quadriga.launch.cli import restart


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the interpreter, whose n-th start runs the script `n` in this folder."""
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nn=$(wc -l < {tmp_path}/calls)\n. {tmp_path}/$n\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


def attempts(folder: Path, *lines: str) -> None:
    """Write the shell line that each attempt runs."""
    for number, line in enumerate(lines, start=1):
        (folder / str(number)).write_text(f"{line}\n")


def calls(folder: Path) -> list[str]:
    """Return the arguments of each start."""
    return (folder / "calls").read_text().splitlines()


def test_killed_and_failed_runs_are_started_again(command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempts(command, "kill -9 $$", "exit 1", "exit 0")
    assert restart.supervise(["a.yaml", "seed=1"], 5) == 0
    assert calls(command) == ["-m quadriga.launch run a.yaml seed=1"] * 3
    printed = capsys.readouterr().err
    assert "The run was killed by SIGKILL; starting it again (1 of 5)." in printed
    assert "The run failed; starting it again (2 of 5)." in printed


@pytest.mark.parametrize("code", [2, 130])
def test_bad_input_and_requested_stops_are_final(command: Path, code: int) -> None:
    attempts(command, f"exit {code}")
    assert restart.supervise(["a.yaml"], 5) == code
    assert len(calls(command)) == 1


def test_restarts_are_limited(command: Path) -> None:
    attempts(command, "kill -9 $$", "kill -9 $$", "exit 0")
    assert restart.supervise(["a.yaml"], 1) == 1
    assert len(calls(command)) == 2


def test_a_signal_reaches_the_run(command: Path) -> None:
    attempts(command, f"trap 'exit 130' TERM; touch {command}/ready; while true; do sleep 0.05; done")

    def stop() -> None:
        while not (command / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)  # to the process, as from outside: the main thread takes it

    thread = threading.Thread(target=stop)
    thread.start()
    assert restart.supervise(["a.yaml"], 5) == 130
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
