"""A real Ray head of its own on this machine, whose interpreter has Quadriga's dependencies but not Quadriga."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 120


@dataclass(frozen=True)
class Head:
    """port: of its dashboard on this machine."""

    port: int

    @property
    def address(self) -> str:
        """Of its job server."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def ray_head(token: str) -> Iterator[Head]:
    """Start a head with token authentication; every process of it is gone after the block."""
    folder = Path(tempfile.mkdtemp(prefix="qh-"))  # short: Ray's sockets lie in it, and their paths are limited
    python = _python_without_quadriga(folder / "venv")
    gcs, dashboard, client, agent = _free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(python.parents[1])}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    options = {
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "node-ip-address": "127.0.0.1",
        "temp-dir": folder / "ray",
        "num-cpus": 4,
        "object-store-memory": 200_000_000,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=true", *words]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _await_port(dashboard, process, folder / "head.log")
        yield Head(dashboard)
    finally:
        _end(str(folder))
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _python_without_quadriga(folder: Path) -> Path:
    """A virtual environment with a link to everything that is installed beside this interpreter, but for Quadriga."""
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin" / "python"
    target = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(installed).iterdir():
            if "quadriga" not in entry.name and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    found = subprocess.run([python, "-c", "import quadriga.launch"], capture_output=True, cwd=folder, env={})
    assert b"No module named 'quadriga'" in found.stderr, found.stderr
    return python


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _await_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(f"no head came up: {log.read_text()}")


def _end(marker: str) -> None:
    """Kill what runs below the folder: Ray's own processes name it in their command lines, others in their PATH."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if marker in " ".join(process.cmdline()) or marker in process.environ().get("PATH", ""):
                process.kill()
