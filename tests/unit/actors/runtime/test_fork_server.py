"""The fork server: a script runs in a fork as it would in a new process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quadriga.actors.runtime import fork_client
from quadriga.actors.runtime.fork_server import forking, worker_command
from quadriga.actors.settings import ClusterSettings

SCRIPT = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "colour": os.environ.get("COLOUR"), "name": __name__,
    "known": "fractions" in sys.modules, "leader": os.getpgid(0) == os.getpid(), "ray": "ray" in sys.modules,
    "parent": os.getppid(), "places": [place for place in sys.path if place == os.environ["PYTHONPATH"]],
}), flush=True)
if "hang" in sys.argv:
    import time
    time.sleep(60)
sys.exit(3)
"""


Server = tuple[str, "subprocess.Popen[bytes]"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that has imported `fractions`: its socket and its process."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        number = listener.fileno()
        command = [sys.executable, "-P", "-m", "quadriga.actors.runtime.fork_server", str(os.getpid()), str(number)]
        process = subprocess.Popen([*command, "fractions"], pass_fds=[number])
    yield path, process
    process.kill()
    process.wait()


def client(path: str, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the script as Ray starts a worker."""
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", fork_client.__file__, path, str(folder / "script.py"), *arguments],
        env=os.environ | {"COLOUR": "red", "PYTHONPATH": str(folder / "modules")},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_script_runs_as_in_a_new_process(server: Server, tmp_path: Path) -> None:
    path, process = server
    for argument in ("one", "two words"):
        message = json.loads(client(path, tmp_path, argument).communicate(timeout=30)[0])
        assert message == {
            "argv": [str(tmp_path / "script.py"), argument],
            "cwd": str(tmp_path),
            "colour": "red",
            "places": [str(tmp_path / "modules")],
            "name": "__main__",
            "known": True,
            "leader": True,  # Ray kills a dead worker's process group: it must not be the server's
            "ray": False,
            "parent": process.pid,
        }


def test_client_ends_with_its_fork(server: Server, tmp_path: Path) -> None:
    waiting = client(server[0], tmp_path, "hang")
    assert waiting.stdout
    group = json.loads(waiting.stdout.readline())
    assert waiting.poll() is None
    (fork,) = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == group["parent"]]
    os.kill(fork, signal.SIGKILL)
    assert waiting.wait(10) == 0
    assert not Path(f"/proc/{fork}").exists()  # nor does a zombie


def test_server_forks_another_with_more_modules(server: Server, tmp_path: Path) -> None:
    path = str(tmp_path / "more")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fork_client.send(server[0], {"modules": ["colorsys"]}, [listener.fileno()]).close()
    message = json.loads(client(path, tmp_path).communicate(timeout=30)[0])
    assert message["known"]
    assert message["parent"] != server[1].pid
    server[1].kill()
    server[1].wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{message['parent']}").exists():  # it ends with the server that it was forked from
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_killed_driver_leaves_no_server_and_no_socket(tmp_path: Path) -> None:
    code = (
        "import time; from quadriga.actors.runtime import fork_server; fork_server.MODEL_MODULES = ('fractions',)\n"
        "server = fork_server.ForkServer({}); print(server.process.pid, server._folder, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert driver.stdout
    pid, folder = driver.stdout.readline().split()
    assert Path(folder).parent == tmp_path
    assert (Path(folder) / "model").is_socket()
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    "cluster", [ClusterSettings(address="10.0.0.1:6379"), ClusterSettings(device="cuda")], ids=["address", "cuda"]
)
def test_workers_elsewhere_are_not_forked(cluster: ClusterSettings) -> None:
    with forking(cluster):
        assert worker_command("model") == {}


def test_nested_block_uses_the_outer_server() -> None:
    with forking(ClusterSettings(device="cpu")):
        outer = worker_command("model")
        with forking(ClusterSettings(device="cpu"), "model"):
            assert worker_command("model") == outer != {}
        assert worker_command("model") == outer
    assert worker_command("model") == {}


def test_server_of_a_named_kind_starts_at_once() -> None:
    with forking(ClusterSettings(device="cpu"), "rollout"):
        model = Path(worker_command("model")["py_executable"].split()[-1])
        assert {file.name for file in model.parent.iterdir()} == {"model", "rollout"}
        rollout = worker_command("rollout")["py_executable"].split()[-1]
        assert rollout == str(model.with_name("rollout"))
    assert not model.parent.exists()


def test_server_of_another_kind_does_not_start() -> None:
    with forking(ClusterSettings(device="cpu")):
        model = Path(worker_command("model")["py_executable"].split()[-1])
        assert {file.name for file in model.parent.iterdir()} == {"model"}
