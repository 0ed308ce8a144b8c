"""A parent that starts a run again when it fails or is killed: the driver cannot restart itself."""

import signal
import subprocess
import sys
from types import FrameType

from rich.console import Console

FAULT = 1


def supervise(arguments: list[str], restarts: int) -> int:
    """`quadriga run ARGUMENTS` in a child, started again up to `restarts` times; returns the last exit code.

    Only a fault or a kill is worth another attempt: bad input stays bad, and a user who stops a run means it. Signals
    are passed on to the child.
    """
    console = Console(stderr=True, highlight=False)
    for attempt in range(restarts + 1):
        child = subprocess.Popen([sys.executable, "-m", "quadriga.launch", "run", *arguments])

        def forward(number: int, frame: FrameType | None, child: "subprocess.Popen[bytes]" = child) -> None:
            child.send_signal(number)

        # Ctrl-C in a terminal reaches the child by itself; SIGTERM is sent to this process alone.
        before = [signal.signal(signal.SIGTERM, forward), signal.signal(signal.SIGINT, signal.SIG_IGN)]
        code = child.wait()
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
        if code != FAULT and code >= 0:
            return code
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
        if attempt < restarts:
            console.print(f"The run {ended}; starting it again ({attempt + 1} of {restarts}).", style="yellow")
    return FAULT if code < 0 else code
