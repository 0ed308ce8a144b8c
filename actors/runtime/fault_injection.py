"""Fault injection inside a process, to rehearse recovery: each fault is real, not simulated."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from pathlib import Path


class InjectedFault(Exception):
    """An error raised on purpose."""


def inject_fault(action: str, seconds: float, thread: int | None) -> None:
    """Cause a fault in this process.

    action: `kill` (SIGKILL), `stop` (SIGSTOP for good), `slow` (SIGSTOP, and SIGCONT after `seconds`), `disconnect`
    (shut down all TCP connections of this process) or `raise` (raise `InjectedFault` in the thread with the identifier
    `thread`, at its next bytecode).
    """
    pid = os.getpid()
    if action == "kill":
        os.kill(pid, signal.SIGKILL)
    elif action == "stop":
        os.kill(pid, signal.SIGSTOP)
    elif action == "slow":
        # A stopped process cannot continue itself.
        command = f"kill -STOP {pid}; sleep {seconds:g}; kill -CONT {pid}"
        subprocess.Popen(["sh", "-c", command], start_new_session=True, stdin=subprocess.DEVNULL)
    elif action == "disconnect":
        for number in _sockets():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    connection.shutdown(socket.SHUT_RDWR)
    elif action == "raise":
        assert thread is not None, "this process has not started to work"
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(InjectedFault))


def _sockets() -> list[int]:
    """Return the file descriptors of this process that are sockets."""
    numbers = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("socket:"):
                numbers.append(int(entry.name))
    return numbers
