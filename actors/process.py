"""Starting an actor process: its environment, its log file, its name."""

import faulthandler
import os
import sys
import threading
from typing import Any


def take_over_output(path: str) -> None:
    """Send stdout and stderr of this process, C level included, to a file of the run; crashes leave stacks there."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable(all_threads=True)


def in_process(cls: type, log: str, name: str) -> type:
    """The class as it runs in its own process: output goes to `log` before anything else happens."""

    class Process(cls):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any):
            take_over_output(log)
            threading.current_thread().name = name
            super().__init__(*arguments)

    Process.__name__ = Process.__qualname__ = cls.__name__
    return Process
