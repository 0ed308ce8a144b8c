"""The fork server: a script runs in a fork as it would in a process of its own."""

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
    "parent": os.getppid(),
}), flush=True)
if "hang" in sys.argv:
    import time
    time.sleep(60)
sys.exit(3)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
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
    """What Ray runs to start a worker."""
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", fork_client.__file__, path, str(folder / "script.py"), *arguments],
        env=os.environ | {"COLOUR": "red"},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_script_sees_its_own_arguments_environment_folder_and_streams(
    server: tuple[str, "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    path, process = server
    for argument in ("one", "two words"):
        said = json.loads(client(path, tmp_path, argument).communicate(timeout=30)[0])
        assert said == {
            "argv": [str(tmp_path / "script.py"), argument],
            "cwd": str(tmp_path),
            "colour": "red",
            "name": "__main__",
            "known": True,
            "leader": True,  # Ray kills a dead worker's process group: it must not be the server's
            "ray": False,
            "parent": process.pid,
        }


def test_the_client_ends_when_its_fork_does(server: tuple[str, "subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    waiting = client(server[0], tmp_path, "hang")
    assert waiting.stdout
    group = json.loads(waiting.stdout.readline())
    assert waiting.poll() is None
    (fork,) = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == group["parent"]]
    os.kill(fork, signal.SIGKILL)
    assert waiting.wait(10) == 0
    assert not Path(f"/proc/{fork}").exists()  # nor is it a zombie


def test_a_server_forks_another_that_knows_more(server: tuple[str, "subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    path = str(tmp_path / "more")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fork_client.send(server[0], {"modules": ["colorsys"]}, [listener.fileno()]).close()
    said = json.loads(client(path, tmp_path).communicate(timeout=30)[0])
    assert said["known"] and said["parent"] != server[1].pid
    server[1].kill()
    server[1].wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{said['parent']}").exists():  # it ends with the one it was forked of
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_driver_that_was_killed_leaves_no_server_and_no_socket(tmp_path: Path) -> None:
    code = (
        "import time; from quadriga.actors.runtime import fork_server; fork_server.MODEL_MODULES = ('fractions',)\n"
        "server = fork_server.ForkServer({}); print(server.process.pid, server._folder, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert driver.stdout
    pid, folder = driver.stdout.readline().split()
    assert Path(folder).parent == tmp_path and (Path(folder) / "model").is_socket()
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


def test_only_workers_of_this_machines_cpu_are_forked_and_nested_use_has_the_outer_server() -> None:
    for elsewhere in (ClusterSettings(address="10.0.0.1:6379"), ClusterSettings(device="cuda")):
        with forking(elsewhere):
            assert worker_command("model") == {}
    with forking(ClusterSettings(device="cpu")):
        outer = worker_command("model")
        with forking(ClusterSettings(device="cpu"), "model"):
            assert worker_command("model") == outer != {}
        assert worker_command("model") == outer
    assert worker_command("model") == {}


def test_what_is_wanted_for_certain_has_its_server_before_it_is_asked_for() -> None:
    with forking(ClusterSettings(device="cpu"), "rollout"):
        host = Path(worker_command("model")["py_executable"].split()[-1])
        assert {file.name for file in host.parent.iterdir()} == {"model", "rollout"}
        rollout = worker_command("rollout")["py_executable"].split()[-1]
        assert rollout == str(host.with_name("rollout"))
    assert not host.parent.exists()
    with forking(ClusterSettings(device="cpu")):
        host = Path(worker_command("model")["py_executable"].split()[-1])
        assert {file.name for file in host.parent.iterdir()} == {"model"}
