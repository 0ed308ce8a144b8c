"""Starts processes in a second instead of fifteen: one process imports torch and the rest, each new one is forked.

Ray starts a worker by the command `runtime_env["py_executable"]`; ours is `fork_client.py`, which hands its arguments,
environment and standard streams to the server here and ends when the forked worker ends. For CPU processes of this
machine only: a fork is no use to CUDA, and beside loading a large model imports are nothing.
"""

import gc
import importlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quadriga.actors.runtime import fork_client
from quadriga.actors.runtime.device import process_environment, without_gpu
from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import Fault

MODEL_MODULES = (
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "deepspeed",
    "transformers.integrations",
    "quadriga.actors.model.equivalence",
    "quadriga.actors.model.export",
    "quadriga.actors.model.worker",
    "quadriga.actors.weights.sync_client",
    "quadriga.actors.model.deepspeed",
)
ROLLOUT_MODULES = (
    "quadriga.actors.rollout.worker",
    "quadriga.actors.weights.object_store",
    "vllm.v1.engine.llm_engine",
)


_current: "ForkServer | None" = None


@contextmanager
def forking(cluster: ClusterSettings, *kinds: str) -> Iterator[None]:
    """Have workers forked that are started inside the block, where the cluster is this machine's CPU.

    The earlier it begins the better: the imports go on beside whatever comes before the first worker. kinds: of worker
    that are wanted for certain. Nested use does nothing more.
    """
    global _current
    if _current is not None or cluster.address is not None or not without_gpu(cluster.device):
        yield
        return
    _current = ForkServer(process_environment("cpu", 1))
    try:
        for kind in kinds:
            _current.prepare(kind)
        yield
    finally:
        _current.close()
        _current = None


def worker_command(kind: str) -> dict[str, str]:
    """What to add to a `runtime_env` to have a worker of this kind (`host` or `rollout`) forked; empty without server.

    Raises Fault when the server is gone.
    """
    return {"py_executable": _current.executable(kind)} if _current is not None else {}


class ForkServer:
    """The server's process, seen by the driver. It ends with the driver; what it forked does not depend on it.

    environment: what modules see while they are imported. log: a file for what they print.
    """

    def __init__(self, environment: dict[str, str], log: str = os.devnull):
        self._folder = tempfile.mkdtemp(prefix="quadriga-fork-")
        self._sockets = {"model": f"{self._folder}/model"}
        listener = _listen(self._sockets["model"])
        command = [
            sys.executable,
            "-P",
            "-m",
            "quadriga.actors.runtime.fork_server",
            str(os.getpid()),
            str(listener.fileno()),
        ]
        with open(log, "ab") as output, listener:
            self.process = subprocess.Popen(
                [*command, *MODEL_MODULES],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def executable(self, kind: str) -> str:
        """The command that starts a worker of this kind, as Ray's `py_executable`."""
        if self.process.poll() is not None:
            raise Fault(f"The process that others are forked of ended with {self.process.returncode}.", phase="start")
        self.prepare(kind)
        return f"{sys.executable} -I -S {fork_client.__file__} {self._sockets[kind]}"

    def prepare(self, kind: str) -> None:
        """Begin to import what workers of this kind need, unless it was begun before."""
        if kind == "rollout" and kind not in self._sockets:
            # vLLM takes as long again as all the rest: a second server, forked of the first, has it too.
            self._sockets[kind] = f"{self._folder}/{kind}"
            with _listen(self._sockets[kind]) as listener:
                fork_client.send(self._sockets["model"], {"modules": ROLLOUT_MODULES}, [listener.fileno()]).close()

    def close(self) -> None:
        """End the servers."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def serve(parent: int, listener: socket.socket, modules: Iterable[str]) -> None:
    """Import the modules, then fork a process for every order, until the parent, which started this one, is gone."""
    # Ray reads its environment, the job's id among it, when it is imported, so that is left to every process itself.
    # vLLM looks for Ray as one of its executors; without it that one is missing, and we use another.
    sys.modules["ray"] = None  # type: ignore[assignment]
    for module in modules:
        importlib.import_module(module)
    del sys.modules["ray"]
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a process with {threads} threads cannot be forked"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    listener.settimeout(1.0)
    server = os.getpid()
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        order, descriptors = fork_client.receive(connection)
        if os.fork() == 0:
            listener.close()
            _become(server, order, descriptors)
        for number in (*descriptors, connection.detach()):
            os.close(number)


def _become(server: int, order: dict[str, Any], descriptors: list[int]) -> None:
    """In a process forked of the server: be a server with more modules, or the script ordered. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()  # Ray kills the whole process group of a worker that died
    if "modules" in order:
        serve(server, socket.socket(fileno=descriptors[0]), order["modules"])
        os._exit(0)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = order["argv"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as done:
        os._exit(done.code if isinstance(done.code, int) else int(done.code is not None))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    return listener


if __name__ == "__main__":
    own = socket.socket(fileno=int(sys.argv[2]))
    serve(int(sys.argv[1]), own, sys.argv[3:])
    folder = Path(own.getsockname()).parent  # a driver that was killed could not remove it
    for left in folder.iterdir():
        if left.is_socket():
            left.unlink()
    folder.rmdir()
