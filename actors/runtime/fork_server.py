"""ForkServer: a process that imports torch and the rest once, and forks workers in a second instead of fifteen.

Ray starts a worker with the command `runtime_env["py_executable"]`; ours is `fork_client.py`, which passes its
arguments, environment and standard streams to the server and ends when the forked worker ends. Only CPU processes of
this machine are forked: CUDA does not survive a fork, and imports are short compared to loading a large model.
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
    "deepspeed.runtime.zero.muon.muon_optimizer",  # imports torch's compiler; DeepSpeed loads it with every optimizer
    "transformers.integrations",
    "quadriga.actors.model.equivalence",
    "quadriga.actors.model.export",
    "quadriga.actors.model.worker",
    "quadriga.actors.weights.object_store",
    "quadriga.actors.model.deepspeed",
)
ROLLOUT_MODULES = (
    "quadriga.actors.rollout.worker",
    "quadriga.actors.weights.engine",
    "quadriga.actors.weights.object_store",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",  # what vLLM imports only when it builds an engine: a second of CPU per worker
    "vllm.model_executor.layers.quantization.online.base",
)


_current: "ForkServer | None" = None


@contextmanager
def forking(cluster: ClusterSettings, *kinds: str) -> Iterator[None]:
    """Have workers that start inside the block forked, if the cluster is this machine's CPU.

    Enter the block early: imports run in parallel to whatever comes before the first worker. kinds: of worker (`model`,
    `rollout`) that will certainly be started. A nested block uses the outer one's server.
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
    """Return the keys of a `runtime_env` that have a worker of this kind (`model` or `rollout`) forked.

    Without a server they are none. Raises Fault if the server has ended.
    """
    return {"py_executable": _current.executable(kind)} if _current is not None else {}


class ForkServer:
    """The driver's handle of the server process, which ends with the driver; forked processes do not depend on it.

    environment: variables that modules see while they are imported. log: file for their output.
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
        """Return the command that starts a worker of this kind, as Ray's `py_executable`.

        Raises Fault if the server has ended.
        """
        if self.process.poll() is not None:
            raise Fault(
                f"The process that workers are forked from ended with {self.process.returncode}.", phase="start"
            )
        self.prepare(kind)
        return f"{sys.executable} -I -S {fork_client.__file__} {self._sockets[kind]}"

    def prepare(self, kind: str) -> None:
        """Start importing the modules of this kind of worker, unless that was started before."""
        if kind == "rollout" and kind not in self._sockets:
            # vLLM takes as long to import as all the rest, so a second server, forked from the first, has it.
            self._sockets[kind] = f"{self._folder}/{kind}"
            with _listen(self._sockets[kind]) as listener:
                fork_client.send(self._sockets["model"], {"modules": ROLLOUT_MODULES}, [listener.fileno()]).close()

    def close(self) -> None:
        """End the servers."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def serve(parent: int, listener: socket.socket, modules: Iterable[str]) -> None:
    """Import the modules, then fork a process per order until the parent process has ended."""
    # Ray reads its environment, including the job's id, when it is imported, so every process imports it by itself.
    # vLLM tries to import Ray for one of its executors, which we do not use.
    sys.modules["ray"] = None  # type: ignore[assignment]
    for module in modules:
        importlib.import_module(module)
    del sys.modules["ray"]
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a process with {threads} threads cannot be forked"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # let the kernel reap children
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
    """In a forked process, become a server with more modules or run the ordered script. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()  # Ray kills the process group of a dead worker, which must not be the server's
    if "modules" in order:
        serve(server, socket.socket(fileno=descriptors[0]), order["modules"])
        os._exit(0)
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


def _listen(path: str) -> socket.socket:
    """Return a listening Unix socket at this path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    return listener


if __name__ == "__main__":
    listener = socket.socket(fileno=int(sys.argv[2]))
    serve(int(sys.argv[1]), listener, sys.argv[3:])
    folder = Path(listener.getsockname()).parent  # a driver that was killed could not remove it
    for file in folder.iterdir():
        if file.is_socket():
            file.unlink()
    folder.rmdir()
