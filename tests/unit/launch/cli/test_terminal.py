"""Output that nobody reads any more is dropped, and the program ends as it would have."""

import os
import pty
import subprocess
import sys

PROGRAM = """
import sys, time
from rich.console import Console
from quadriga.launch.cli.terminal import outlive_the_terminal
outlive_the_terminal()
console = Console()
console.print("first")
sys.stdin.readline()
for number in range(2000):
    console.print(f"line {number}")
print("last", flush=True)
open(sys.argv[1], "w").write("done")
"""


def test_closed_pipe(tmp_path) -> None:  # type: ignore[no-untyped-def]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout and program.stdin
    assert program.stdout.readline() == "first\n"
    program.stdout.close()
    _, errors = program.communicate("\n", timeout=60)
    assert (program.returncode, errors) == (0, "")
    assert (tmp_path / "end").read_text() == "done"


def test_closed_terminal(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "end"],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert os.read(ours, 5) == b"first"
    os.close(ours)
    program.communicate(b"\n", timeout=60)
    assert program.returncode == 0
    assert (tmp_path / "end").read_text() == "done"
