"""Program that runs on a host without Quadriga: collects facts, starts and stops Ray. Standard library only.

`launch/ssh/hosts.py` sends this file over ssh's standard input, followed by one order as a line of JSON, so that no
part of it appears in a command line; the answer is a line of JSON. Ray's processes are marked by an environment
variable, which their child processes inherit: this program ends only processes that it has started.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

MARK = "QUADRIGA_LAUNCH"
STARTED = "Ray runtime started."


def facts(order: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of this host. order: packages, ports (that Ray needs), folder (the run directory)."""
    packages: dict[str, str | None] = {}
    for name in order["packages"]:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "address": os.environ.get("SSH_CONNECTION", "? ? 127.0.0.1 ?").split()[2],
        "python": list(sys.version_info[:3]),
        "packages": packages,
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus(),
        "disk": shutil.disk_usage(existing(order["folder"])).free,
        "shm": shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0,
        "clock": time.time(),
        "taken_ports": [port for port in order["ports"] if not free(port)],
    }


def gpus() -> list[int]:
    """Return the memory of each GPU, in bytes."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return [int(line) << 20 for line in done.stdout.split() if line.isdigit()]


def existing(folder: str) -> str:
    """Return the folder, or its nearest parent that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "/"
    return folder


def free(port: int) -> bool:
    """Return whether a server could listen on the port."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True


def listen(order: dict[str, Any]) -> None:
    """Answer with the ports of other hosts that cannot be reached, [[host, port]]; listen until standard input ends.

    order: listen (ports), others ([[host, address, ports]]), seconds (how long to retry).
    """
    for port in order["listen"]:
        server = socket.create_server(("", port), backlog=256)
        threading.Thread(target=accept, args=(server,), daemon=True).start()
    failed: list[list[Any]] = []
    deadline = time.monotonic() + order["seconds"]

    def reach(host: str, address: str, port: int) -> None:
        while True:
            try:
                socket.create_connection((address, port), timeout=2).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    failed.append([host, port])
                    return
                time.sleep(0.2)

    calls = [(host, address, port) for host, address, ports in order["others"] for port in ports]
    threads = [threading.Thread(target=reach, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer(sorted(failed))
    sys.stdin.read()


def accept(server: socket.socket) -> None:
    """Accept connections and close them."""
    while True:
        server.accept()[0].close()


def write_marker(order: dict[str, Any]) -> str | None:
    """Write a marker file into the run directory. Return None, or the error. order: folder, name."""
    try:
        os.makedirs(order["folder"], exist_ok=True)
        with open(os.path.join(order["folder"], order["name"]), "w") as file:
            file.write(order["name"])
    except OSError as error:
        return error.strerror
    return None


def find_markers(order: dict[str, Any]) -> list[str]:
    """Return the names of the hosts' marker files that exist here. order: folder, names."""
    return [name for name in order["names"] if os.path.isfile(os.path.join(order["folder"], name))]


def remove_marker(order: dict[str, Any]) -> None:
    """Remove this host's marker file. order: folder, name."""
    with contextlib.suppress(OSError):
        os.remove(os.path.join(order["folder"], order["name"]))


def up(order: dict[str, Any]) -> str | None:
    """Start Ray and wait until it runs. Return None, or why it does not.

    order: mark, state (folder for this program's files), files (text per name, readable by the owner only), temporary
    (Ray's folder), command, environment (`{state}` in a value stands for that folder), seconds (longest wait).
    """
    state = os.path.expanduser(order["state"])
    os.makedirs(state, mode=0o700, exist_ok=True)
    for name, text in order["files"].items():
        private = os.path.join(state, name)
        with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
    log = os.path.join(state, "ray.log")
    environment = {name: value.replace("{state}", state) for name, value in order["environment"].items()}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            order["command"],
            env={**os.environ, **environment, MARK: order["mark"]},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + order["seconds"]
    while True:
        with open(log, errors="replace") as file:
            printed = file.read()
        if STARTED in printed:
            return None
        if process.poll() is not None or time.monotonic() > deadline:
            down(order)
            how = "did not start in time" if process.returncode is None else f"ended with {process.returncode}"
            return f"ray start {how}: " + " ".join(printed.split()[-60:])
        time.sleep(0.1)


def down(order: dict[str, Any]) -> int:
    """End the processes of an order, first by SIGTERM, and remove its files. Return the number of processes."""
    ended = set[int]()
    # Some of Ray's processes ignore SIGTERM once there has been an actor; the others need about two seconds.
    for number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
        ended |= set(running(order))
        for pid in filter(alive, ended):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while any(map(alive, ended)) and time.monotonic() < deadline:
            time.sleep(0.1)
    for folder in (order["state"], order["temporary"]):
        shutil.rmtree(os.path.expanduser(folder), ignore_errors=True)
    return len(ended)


def find_cluster(order: dict[str, Any]) -> dict[str, Any]:
    """Return the number of running processes of the order, its state folder, and the token they were started with."""
    state = os.path.expanduser(order["state"])
    token = None
    with contextlib.suppress(OSError), open(os.path.join(state, "token")) as file:
        token = file.read()
    return {"processes": len(running(order)), "state": state, "token": token}


def running(order: dict[str, Any]) -> list[int]:
    """Return the processes with an order's mark, Ray's workers with an open file of its folder, and their descendants.

    The mark alone is not enough: Ray's workers change their title, which may overwrite their environment.
    """
    mark, folder = f"{MARK}={order['mark']}".encode(), order["temporary"] + "/"
    parents: dict[int, int] = {}
    ours = set[int]()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parents[pid] = status(pid)[1]
            if mark in content(pid, "environ").split(b"\0") or (
                content(pid, "cmdline").startswith(b"ray::") and any(name.startswith(folder) for name in opened(pid))
            ):
                ours.add(pid)
        except OSError:  # it has ended, or belongs to another user
            continue
    while children := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= children
    return [pid for pid in sorted(ours) if alive(pid) and pid != os.getpid()]


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return status(pid)[0] not in "ZX"
    except OSError:
        return False


def status(pid: int) -> tuple[str, int]:
    """Return the state letter and the parent of a process."""
    state, parent = content(pid, "stat").rpartition(b")")[2].split()[:2]
    return state.decode(), int(parent)


def content(pid: int, name: str) -> bytes:
    """Return the content of a file of /proc/PID."""
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def opened(pid: int) -> list[str]:
    """Return the names of the files that a process has open."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return names


def answer(value: Any) -> None:
    """Print the answer as one line of JSON."""
    print(json.dumps(value), flush=True)


def main() -> None:
    """Run the order in a line of standard input: [verb, order]."""
    verb, order = json.loads(sys.stdin.readline())
    if verb == "listen":
        listen(order)
    else:
        verbs = {
            function.__name__: function
            for function in (facts, write_marker, find_markers, remove_marker, up, down, find_cluster)
        }
        answer(verbs[verb](order))


if __name__ == "__main__":
    main()
