"""Faults that a process can be told to have, so that recovery is rehearsed: each of them is the real thing."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from pathlib import Path


class InjectedFault(Exception):
    """An error that was asked for."""


def inject_fault(action: str, seconds: float, thread: int | None) -> None:
    """Have a fault in this process.

    kill: SIGKILL. stop: SIGSTOP, for good. slow: SIGSTOP, and SIGCONT after `seconds`. disconnect: every TCP connection
    of this process is shut down. raise: `InjectedFault` is raised in `thread` (its ident), at its next bytecode.
    """
    own = os.getpid()
    if action == "kill":
        os.kill(own, signal.SIGKILL)
    elif action == "stop":
        os.kill(own, signal.SIGSTOP)
    elif action == "slow":
        # Another process has to wake this one.
        command = f"kill -STOP {own}; sleep {seconds:g}; kill -CONT {own}"
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
    numbers = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("socket:"):
                numbers.append(int(entry.name))
    return numbers
