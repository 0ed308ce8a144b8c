"""A parent process that restarts a run which fails or is killed: the driver cannot restart itself."""

import signal
import subprocess
import sys
from types import FrameType
from typing import Any

from rich.console import Console

FAULT = 1
"""Exit code of a run that failed."""


def supervise(arguments: list[str], restarts: int) -> int:
    """Run `quadriga run ARGUMENTS` in a child process, restart it up to `restarts` times, return the last exit code.

    Only a fault or a kill is worth another attempt: bad input stays bad, and a user who stops a run means it. SIGTERM
    and SIGHUP are forwarded to the child.
    """
    console = Console(stderr=True, highlight=False)
    for attempt in range(restarts + 1):
        child = subprocess.Popen([sys.executable, "-m", "quadriga.launch", "run", *arguments])

        def forward(number: int, frame: FrameType | None, child: "subprocess.Popen[bytes]" = child) -> None:
            child.send_signal(number)

        # Ctrl-C in a terminal reaches the child by itself; SIGTERM is sent to this process alone. `nohup` has SIGHUP
        # ignored.
        handlers: dict[int, Any] = {signal.SIGTERM: forward, signal.SIGINT: signal.SIG_IGN}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handlers[signal.SIGHUP] = forward
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        code = child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        if code != FAULT and code >= 0:
            return code
        outcome = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
        if attempt < restarts:
            console.print(f"The run {outcome}; starting it again ({attempt + 1} of {restarts}).", style="yellow")
    return FAULT if code < 0 else code
