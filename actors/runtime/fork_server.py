"""Fork server: a process that imports torch and the rest once, and forks workers in a second instead of fifteen.

Ray starts a worker with the command `runtime_env["py_executable"]`; ours is `fork_client.py`, which passes its
arguments, environment and standard streams to the server and ends when the forked worker ends. The first client on a
node starts the node's server; the driver starts that of its own machine before Ray runs. Only CPU processes are forked:
CUDA does not survive a fork, and imports are short compared to loading a large model.
"""

import gc
import importlib
import os
import runpy
import secrets
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from quadriga.actors.runtime import fork_client
from quadriga.actors.runtime.device import process_environment, without_gpu
from quadriga.actors.settings import ClusterSettings

MODULES = {
    "model": (
        "transformers.modeling_utils",
        "transformers.models.llama.modeling_llama",
        "deepspeed",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # imports torch's compiler; loaded with every optimizer
        "transformers.integrations",
        "quadriga.actors.model.equivalence",
        "quadriga.actors.model.export",
        "quadriga.actors.model.worker",
        "quadriga.actors.weights.object_store",
        "quadriga.actors.model.deepspeed",
    ),
    "rollout": (
        "quadriga.actors.rollout.worker",
        "quadriga.actors.weights.engine",
        "quadriga.actors.weights.object_store",
        "vllm.v1.engine.llm_engine",
        "vllm.v1.worker.cpu_worker",  # what vLLM imports only when it builds an engine: a second of CPU per worker
        "vllm.model_executor.layers.quantization.online.base",
    ),
}
"""Modules that the server of a kind of workers imports."""
IDLE_SECONDS = 10.0
"""How long a server that does not end with its driver waits for the next worker."""
# A joined cluster's nodes may lack this interpreter or file. Words: interpreter, client, token, kind, then Ray's.
COMMAND = '[ -x "$0" ] && [ -r "$1" ] && exec "$0" -I -S "$@"; shift 3; exec python "$@"'

_token: str | None = None
"""Names the servers of the driver's present block."""


@contextmanager
def forking(cluster: ClusterSettings, *kinds: str) -> Iterator[None]:
    """Have CPU workers that start inside the block forked, on this machine and on the nodes of a joined cluster.

    If the cluster is this machine, its server starts now, and ends with the block or the driver: enter the block early,
    so that imports run in parallel to whatever comes before the first worker. kinds: of worker (`model`, `rollout`)
    that will certainly be started. A nested block is part of the outer one.
    """
    global _token
    if _token is not None:
        yield
        return
    _token, server = secrets.token_hex(8), None
    try:
        if cluster.address is None and without_gpu(cluster.device):
            environment = os.environ | process_environment("cpu", 1)
            server = fork_client.start(_token, "model", os.getpid(), environment, subprocess.DEVNULL)
            for kind in kinds:
                fork_client.start(_token, kind)
        yield
    finally:
        if server is not None:
            server.kill()
            server.wait()
        _token = None


def worker_command(kind: str, device: str) -> dict[str, str]:
    """Return the keys of a `runtime_env` that have a worker of this kind (`model` or `rollout`) forked.

    Outside a `forking` block, and for the device `cuda`, they are none.
    """
    if _token is None or device != "cpu":
        return {}
    return {"py_executable": shlex.join(["sh", "-c", COMMAND, sys.executable, fork_client.__file__, _token, kind])}


def serve(kind: str, listener: socket.socket, driver: int) -> None:
    """Import the modules of this kind, then fork a process per order until the server is not needed.

    driver: parent process with which the server ends; 0 for a server that ends when it has been idle.
    """
    # Ray reads its environment, including the job's id, when it is imported, so every process imports it by itself.
    # vLLM tries to import Ray for one of its executors, which we do not use.
    sys.modules["ray"] = None  # type: ignore[assignment]
    try:
        for module in MODULES[kind]:
            importlib.import_module(module)
    except Exception:  # the worker imports it again, and reports to the driver why it fails
        traceback.print_exc()
    del sys.modules["ray"]
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        print(f"A process with {threads} threads cannot be forked.", file=sys.stderr, flush=True)
        return
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # let the kernel reap children
    until = time.monotonic() + IDLE_SECONDS
    while os.getppid() == driver if driver else time.monotonic() < until:
        if select.select([listener], [], [], 1.0)[0]:
            with listener.accept()[0] as connection:
                _follow(connection, listener, driver)
        if _has_children():
            until = time.monotonic() + IDLE_SECONDS


def _follow(connection: socket.socket, listener: socket.socket, driver: int) -> None:
    """Fork a process that follows the order of a connection."""
    try:
        fork_client.require_own_user(connection)
        order, descriptors = fork_client.receive(connection)
    except (OSError, EOFError):  # another user's, or cut off
        return
    server = os.getpid()
    if os.fork() == 0:
        listener.close()
        if "serve" in order:
            _become_server(order, descriptors, server if driver else 0)
        _become_worker(order, descriptors, connection)
    for number in descriptors:
        os.close(number)


def _has_children() -> bool:
    """Return whether a child process lives; SIGCHLD must be ignored."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _become_server(order: dict[str, Any], descriptors: list[int], driver: int) -> NoReturn:
    """In a forked process, become a server with more modules."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    serve(order["serve"], socket.socket(fileno=descriptors[0]), driver)
    os._exit(0)


def _become_worker(order: dict[str, Any], descriptors: list[int], connection: socket.socket) -> NoReturn:
    """In a forked process, run the ordered script. The connection stays open until the process ends."""
    connection.send(b"1")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()  # Ray kills the process group of a dead worker, which must not be the server's
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["env"])
    # An interpreter reads PYTHONPATH when it starts, which this one did as the server.
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path += [place for place in places if place and place not in sys.path]
    os.chdir(order["cwd"])
    sys.argv = order["argv"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    driver = int(sys.argv[1])
    if not driver and os.fork():  # not a child of the client, which Ray may kill together with its children
        os._exit(0)
    os.environ.update(process_environment("cpu", 1))
    serve("model", socket.socket(fileno=int(sys.argv[2])), driver)
    os._exit(0)
