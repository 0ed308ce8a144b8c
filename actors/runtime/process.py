"""Starting an actor process: its environment, log file and name, and the thread on which it shows signs of life."""

import faulthandler
import os
import signal
import sys
import threading
from typing import Any

from quadriga.actors.runtime.device import process_environment
from quadriga.actors.runtime.fault_injection import inject_fault
from quadriga.actors.runtime.fork_server import worker_command


def take_over_output(path: str) -> None:
    """Send stdout and stderr of this process, C level included, to a file of the run.

    Crashes leave their stacks there, and so does SIGUSR1 (`kill -USR1 PID`), which ends nothing.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def runtime_env(kind: str, device: str, threads: int) -> dict[str, Any]:
    """Ray's `runtime_env` of a process. kind: `model` or `rollout`."""
    return {"env_vars": process_environment(device, threads)} | worker_command(kind)


def remote_process(cls: type, log: str, name: str) -> Any:
    """The class as a Ray actor class that runs in its own process: output goes to `log` before anything else happens.

    Calls in the concurrency group `heartbeat` have a thread of their own.
    """
    import ray

    class Process(cls):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any):
            take_over_output(log)
            threading.current_thread().name = name
            super().__init__(*arguments)

        def heartbeat(self) -> tuple[str, int]:
            """A sign of life: Ray's id of the node, and process id."""
            return ray.get_runtime_context().get_node_id(), os.getpid()

        def inject_fault(self, action: str, seconds: float) -> None:
            """Have a fault, as a rehearsal."""
            inject_fault(action, seconds, getattr(self, "working_thread", None))

    Process.__name__ = Process.__qualname__ = cls.__name__
    return ray.remote(concurrency_groups={"heartbeat": 1})(Process)
