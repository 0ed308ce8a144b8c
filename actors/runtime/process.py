"""Actor processes: their environment, log file and name, and a thread that answers heartbeats."""

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
    """Append this process's stdout and stderr, including those of C code, to a file.

    A crash leaves its stacks there, and so does SIGUSR1 (`kill -USR1 PID`), which does not end the process.
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
    """Return Ray's `runtime_env` of a process; kind: `model` or `rollout`, threads: of its CPU kernels.

    The process imports a user's modules from the driver's present working directory; Ray itself passes on the one in
    which it was started.
    """
    places = {"PYTHONPATH": f"{os.getcwd()}{os.pathsep}${{PYTHONPATH}}"}
    return {"env_vars": process_environment(device, threads) | places} | worker_command(kind, device)


def remote_process(cls: type, log: str, name: str) -> Any:
    """Return a class as a Ray actor class that first of all sends its process's output to the file `log`.

    name: of the main thread. Calls in the concurrency group `heartbeat` run on a separate thread.
    """
    import ray

    class Process(cls):
        def __init__(self, *arguments: Any):
            take_over_output(log)
            threading.current_thread().name = name
            super().__init__(*arguments)

        def heartbeat(self) -> tuple[str, int]:
            """Answer from a separate thread, even during a call: Ray's id of the node, and process id."""
            return ray.get_runtime_context().get_node_id(), os.getpid()

        def inject_fault(self, action: str, seconds: float) -> None:
            """Cause a fault in this process (see `fault_injection.inject_fault`)."""
            inject_fault(action, seconds, getattr(self, "working_thread", None))

    Process.__name__ = Process.__qualname__ = cls.__name__
    return ray.remote(concurrency_groups={"heartbeat": 1})(Process)
