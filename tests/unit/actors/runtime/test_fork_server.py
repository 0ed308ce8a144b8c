"""The fork server: a script runs in a fork as it would in a new process."""

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
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
NOBODY = 65534
WAIT_SECONDS = 30
CPU = ClusterSettings(device="cpu")
JOINED = ClusterSettings(device="cpu", address="10.0.0.1:6379")
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass
class Node:
    """A node on which Ray starts workers: what is imported ahead there is `fractions`, and then an import fails."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        for name in ("torch", "vllm"):
            self.module(name, "raise ImportError('a stub')")
        self.module("transformers", "")
        self.module("transformers/modeling_utils", "import fractions")
        (self.folder / "script.py").write_text(SCRIPT)

    @property
    def modules(self) -> Path:
        """The PYTHONPATH."""
        return self.folder / "modules"

    def module(self, name: str, code: str) -> None:
        """Write a module; a package if it is written first."""
        file = self.modules / f"{name}.py" if "/" in name else self.modules / name / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)

    def start(self, kind: str, *arguments: str, prefix: tuple[str, ...] = (), **more: Any) -> "subprocess.Popen[str]":
        """Start the script as Ray starts a worker."""
        client = [*prefix, sys.executable, "-I", "-S", fork_client.__file__, self.token, kind]
        return subprocess.Popen(
            [*client, str(self.folder / "script.py"), *arguments],
            env=os.environ | {"COLOUR": "red", "PYTHONPATH": str(self.modules), "NODE": self.token},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "errors").open("ab"),
            text=True,
            **more,
        )

    def run(self, kind: str, *arguments: str, **more: Any) -> dict[str, Any]:
        """What the script says of itself."""
        return message(self.start(kind, *arguments, **more))

    def serve(self, idle_seconds: float) -> "subprocess.Popen[bytes]":
        """Start servers that import nothing and end after so long without a worker; return the first."""
        code = (
            "import socket, sys; from quadriga.actors.runtime import fork_server\n"
            f"fork_server.MODULES, fork_server.IDLE_SECONDS = {{'model': (), 'rollout': ()}}, {idle_seconds}\n"
            "fork_server.serve('model', socket.socket(fileno=int(sys.argv[1])), 0)"
        )
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(fork_client.address(self.token, "model"))
            listener.listen()
            number = listener.fileno()
            return subprocess.Popen(
                [sys.executable, "-c", code, str(number)], pass_fds=[number], env=os.environ | {"NODE": self.token}
            )

    def processes(self) -> list[psutil.Process]:
        """What runs on the node."""
        return [process for process in psutil.process_iter() if environment(process).get("NODE") == self.token]

    def clear(self) -> None:
        """Kill what runs on the node."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                process.kill()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node on which nothing runs before and after."""
    node = Node(tmp_path)
    yield node
    node.clear()


def message(client: "subprocess.Popen[str]") -> dict[str, Any]:
    """The first line that the script prints."""
    assert client.stdout is not None
    return json.loads(client.stdout.readline())  # type: ignore[no-any-return]


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def await_end(*pids: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):  # a zombie has none
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_script_runs_as_in_a_new_process(node: Node) -> None:
    for argument in ("one", "two words"):
        said = node.run("model", argument)
        server = psutil.Process(said.pop("parent"))
        assert "fork_server" in " ".join(server.cmdline())
        assert said == {
            "argv": [str(node.folder / "script.py"), argument],
            "cwd": str(node.folder),
            "colour": "red",
            "places": [str(node.modules)],
            "name": "__main__",
            "known": True,
            "leader": True,  # Ray kills a dead worker's process group: it must not be the server's
            "ray": False,
        }


def test_client_ends_with_its_fork(node: Node) -> None:
    waiting = node.start("model", "hang")
    server = psutil.Process(message(waiting)["parent"])
    assert waiting.poll() is None
    (fork,) = server.children()
    fork.kill()
    assert waiting.wait(10) == 0
    assert not psutil.pid_exists(fork.pid)  # nor does a zombie


def test_workers_at_the_same_time_share_a_server(node: Node) -> None:
    clients = [node.start("model") for _ in range(4)]
    assert len({message(client)["parent"] for client in clients}) == 1


def test_server_is_independent_of_its_first_client(node: Node) -> None:
    first = node.start("model", "hang", start_new_session=True)
    server = psutil.Process(message(first)["parent"])
    assert server not in psutil.Process(first.pid).children(recursive=True)
    assert os.getsid(server.pid) != first.pid
    os.killpg(first.pid, signal.SIGKILL)
    assert node.run("model")["parent"] == server.pid


@pytest.mark.parametrize("kind", ["model", "rollout"])
def test_killed_server_is_replaced(node: Node, kind: str) -> None:
    killed = node.run(kind)["parent"]
    psutil.Process(killed).kill()
    await_end(killed)
    assert "fork_server" in " ".join(psutil.Process(node.run(kind)["parent"]).cmdline())


def test_rollout_server_is_forked_from_the_other(node: Node) -> None:
    rollout = node.run("rollout")
    assert rollout["known"]
    assert psutil.Process(rollout["parent"]).ppid() == node.run("model")["parent"]


def test_server_ends_when_it_is_idle(node: Node) -> None:
    model = node.serve(1.0)
    waiting = node.start("rollout", "hang")
    rollout = psutil.Process(message(waiting)["parent"])
    assert rollout.ppid() == model.pid
    time.sleep(4)  # with a worker, and with another server, it is not
    (worker,) = rollout.children()
    assert model.poll() is None
    worker.kill()
    await_end(rollout.pid)
    assert model.wait(WAIT_SECONDS) == 0
    assert waiting.wait(WAIT_SECONDS) == 0
    assert node.processes() == []


def test_each_driver_has_its_own_server(node: Node) -> None:
    first = node.run("model")["parent"]
    assert node.run("model")["parent"] == first
    other = Node(node.folder)
    try:
        assert other.run("model")["parent"] != first
    finally:
        other.clear()


@root
def test_each_container_has_its_own_server(node: Node) -> None:
    first = node.run("model")["parent"]
    assert node.run("model", prefix=("unshare", "--mount"))["parent"] != first


@pytest.mark.parametrize(
    "code", ["import os; os._exit(1)", "import threading, time; threading.Thread(target=time.sleep, args=[60]).start()"]
)
def test_worker_without_a_server_imports_itself(node: Node, code: str) -> None:
    node.module("transformers/modeling_utils", f"{code}\nimport time; time.sleep(1)")
    client = node.start("model")
    said = message(client)
    assert not said["known"]
    assert said["colour"] == "red"
    assert said["argv"] == [str(node.folder / "script.py")]
    assert said["parent"] == os.getpid()
    assert client.wait(WAIT_SECONDS) == 3
    assert "This model worker is not forked" in (node.folder / "errors").read_text()


@root
def test_server_of_another_user_gets_no_order(node: Node) -> None:
    code = "import socket, sys; listener = socket.socket(fileno=int(sys.argv[1])); listener.listen(); input()"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(fork_client.address(node.token, "model"))
        number = str(listener.fileno())
        foreign = subprocess.Popen(
            ["setpriv", f"--reuid={NOBODY}", sys.executable, "-I", "-S", "-c", code, number],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
        )
        deadline = time.monotonic() + WAIT_SECONDS
        while not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert node.run("model")["parent"] == os.getpid()
    assert f"belongs to user {NOBODY}" in (node.folder / "errors").read_text()
    foreign.communicate()


@root
def test_client_of_another_user_gets_no_worker(node: Node) -> None:
    server = node.run("model")["parent"]
    connection = socket.socket(socket.AF_UNIX)
    os.seteuid(NOBODY)
    try:
        connection.connect(fork_client.address(node.token, "model"))
    finally:
        os.seteuid(0)
    order = {"argv": [str(node.folder / "script.py")], "env": {"PYTHONPATH": ""}, "cwd": "/"}
    with pytest.raises((ConnectionResetError, BrokenPipeError)):  # the server may hang up before we have sent all
        fork_client.send(connection, order, [0, 1, 2]).recv(1)
    assert node.run("model")["parent"] == server


def test_client_that_says_nothing_ends_no_server(node: Node) -> None:
    server = node.run("model")["parent"]
    fork_client.connect(node.token, "model").close()
    assert node.run("model")["parent"] == server


def test_killed_driver_leaves_no_server(node: Node) -> None:
    code = (
        "import time; from quadriga.actors.runtime import fork_client, fork_server\n"
        "from quadriga.actors.settings import ClusterSettings\n"
        "with fork_server.forking(ClusterSettings(device='cpu'), 'rollout'):\n"
        "    print(fork_server._token, flush=True); time.sleep(60)"
    )
    variables = os.environ | {"PYTHONPATH": str(node.modules), "NODE": node.token}
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=variables)
    assert driver.stdout
    token = driver.stdout.readline().strip()
    (server,) = psutil.Process(driver.pid).children()
    assert addresses(token) == {"model", "rollout"}
    driver.kill()
    driver.wait()
    await_end(server.pid)
    assert addresses(token) == set()


def addresses(token: str) -> set[str]:
    """The kinds of workers for which a driver's servers listen."""
    names = [
        line.split("quadriga-fork-")[1] for line in Path("/proc/net/unix").read_text().splitlines() if token in line
    ]
    return {name.split("-")[1] for name in names}


def words(kind: str = "model", device: str = "cpu") -> list[str]:
    return shlex.split(worker_command(kind, device)["py_executable"])


def test_command_starts_the_client(node: Node) -> None:
    with forking(JOINED):
        command = worker_command("model", "cpu")["py_executable"].replace(words()[-2], node.token)
    variables = os.environ | {"PYTHONPATH": str(node.modules), "NODE": node.token}
    script = shlex.quote(str(node.folder / "script.py"))
    done = subprocess.run(["bash", "-c", f"exec {command} {script} 'two words'"], env=variables, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["argv"][1] == "two words"
    assert json.loads(done.stdout)["known"]


def test_command_works_on_a_node_with_other_paths(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_client, "__file__", "/nowhere/fork_client.py")
    with forking(JOINED):
        command = worker_command("model", "cpu")["py_executable"]
    variables = {"PYTHONPATH": str(node.modules), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = shlex.quote(str(node.folder / "script.py"))
    done = subprocess.run(["bash", "-c", f"exec {command} {script} 'two words'"], env=variables, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["argv"][1] == "two words"
    assert not json.loads(done.stdout)["known"]


def test_workers_on_gpus_are_not_forked() -> None:
    with forking(CPU):
        assert worker_command("model", "cuda") == {}


def test_workers_outside_the_block_are_not_forked() -> None:
    assert worker_command("model", "cpu") == {}


@pytest.mark.parametrize("cluster", [JOINED, ClusterSettings(device="cuda")], ids=["address", "cuda"])
def test_driver_starts_no_server_for_other_machines(cluster: ClusterSettings) -> None:
    with forking(cluster, "rollout"):
        assert addresses(words()[-2]) == set()


def test_nested_block_is_part_of_the_outer_one() -> None:
    with forking(CPU):
        outer = words()
        with forking(CPU, "model"):
            assert words() == outer
        assert words() == outer
    assert worker_command("model", "cpu") == {}


def test_server_of_a_named_kind_starts_at_once() -> None:
    with forking(CPU, "rollout"):
        token = words()[-2]
        assert addresses(token) == {"model", "rollout"}
    assert "model" not in addresses(token)


def test_server_of_another_kind_does_not_start() -> None:
    with forking(CPU):
        assert addresses(words()[-2]) == {"model"}
