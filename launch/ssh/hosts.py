"""The hosts of `cluster.ssh`: one connection each, all asked at the same time."""

import base64
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quadriga.actors.launcher_settings import SshSettings
from quadriga.data.errors import UserError

SCRIPT = Path(__file__).with_name("remote.py")
BOOTSTRAP = "import base64,sys;exec(compile(base64.b64decode(sys.stdin.readline()),'remote.py','exec'))"
CONNECT_SECONDS = 10


class HostFailure(Exception):
    """One host did not do what it was asked: its name, and why."""

    def __init__(self, host: str, reason: str):
        super().__init__(f"{host}: {reason}")
        self.host, self.reason = host, reason


class Host:
    """One machine of `cluster.ssh`."""

    def __init__(self, name: str, settings: SshSettings):
        self.name, self.settings = name, settings

    def ssh(self, *options: str) -> list[str]:
        """The ssh command to this host, up to what it shall run there. It never asks for a password."""
        settings = self.settings
        words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        words += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-p", str(settings.port)]
        words += [word for option in settings.options for word in ("-o", option)]
        words += ["-i", os.path.expanduser(settings.key)] if settings.key else []
        words += ["-l", settings.user] if settings.user else []
        return [*words, *options, "--", self.name]

    def start(self, verb: str, order: Mapping[str, Any]) -> "subprocess.Popen[str]":
        """Begin a verb of remote.py there; its answer is the first line of standard output."""
        process = subprocess.Popen(
            [*self.ssh(), f'{self.settings.python} -c "{BOOTSTRAP}"'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        try:
            process.stdin.write(base64.b64encode(SCRIPT.read_bytes()).decode() + "\n")
            process.stdin.write(json.dumps([verb, dict(order)]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # its end says why
        return process

    def call(self, verb: str, order: Mapping[str, Any], seconds: float) -> Any:
        """The answer to a verb of remote.py. Raises HostFailure when there is none in time."""
        process = self.start(verb, order)
        try:
            said, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise HostFailure(self.name, f"no answer within {seconds:.0f} s") from None
        if process.returncode:
            raise HostFailure(self.name, self.describe_exit(process.returncode, complaint))
        return json.loads(said)

    def describe_exit(self, code: int, complaint: str) -> str:
        """Why ssh or the interpreter there ended, in a sentence."""
        last = (complaint.strip().splitlines() or [f"exit code {code}"])[-1]
        if code == 255:
            return f"ssh cannot get in ({last})"
        if code in (126, 127):
            return f"`{self.settings.python}` cannot be run there ({last}): set cluster.ssh.python"
        return last


def hosts_of(settings: SshSettings) -> list[Host]:
    """All of them, the head first."""
    return [Host(name, settings) for name in settings.hosts]


def all_of(hosts: Sequence[Host], ask: Callable[[Host], Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask every host at the same time: name -> answer, and name -> why there is none."""
    answers: dict[str, Any] = {}
    failures: dict[str, str] = {}

    def one(host: Host) -> None:
        try:
            answers[host.name] = ask(host)
        except HostFailure as failure:
            failures[host.name] = failure.reason

    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as threads:
        list(threads.map(one, hosts))
    order = [host.name for host in hosts]
    return {n: answers[n] for n in order if n in answers}, {n: failures[n] for n in order if n in failures}


def check_connectivity(
    hosts: Sequence[Host], addresses: Mapping[str, str], ports: Callable[[str], Sequence[int]], seconds: float
) -> dict[str, list[tuple[str, int]]]:
    """Have every host listen and every other one connect: host -> what it cannot reach.

    ports: those that a host listens on. Raises UserError when a host does not answer at all.
    """
    processes = {}
    for host in hosts:
        others = [[other.name, addresses[other.name], list(ports(other.name))] for other in hosts if other is not host]
        order = {"listen": list(ports(host.name)), "others": others, "seconds": seconds}
        processes[host.name] = host.start("listen", order)
    try:
        found: dict[str, list[tuple[str, int]]] = {}
        for host in hosts:
            process = processes[host.name]
            assert process.stdout and process.stderr
            line = process.stdout.readline()
            if not line:
                raise UserError(f"{host.name}: {host.describe_exit(process.wait(), process.stderr.read())}.")
            found[host.name] = [(name, port) for name, port in json.loads(line)]
        return found
    finally:
        for process in processes.values():  # the end of standard input ends them
            assert process.stdin
            process.stdin.close()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()


@contextmanager
def tunnel(head: Host, port: int) -> Iterator[str]:
    """The head's `port` on this machine's loopback, as long as the block lasts: its address here.

    A connection that breaks is made again. Raises UserError when there is none at first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
    command = head.ssh("-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}")
    over = threading.Event()
    process = _forward(command)

    def keep() -> None:
        nonlocal process
        while not over.wait(1.0):
            if process.poll() is not None:
                process = _forward(command)

    try:
        deadline = time.monotonic() + 2 * CONNECT_SECONDS
        while not _listens(local):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                reason = head.describe_exit(process.wait(), process.communicate()[1])
                raise UserError(f"{head.name}: port {port} cannot be reached through ssh: {reason}.")
            time.sleep(0.1)
        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        yield f"http://127.0.0.1:{local}"
        over.set()
        keeper.join()
    finally:
        over.set()
        process.terminate()
        process.communicate()


def _forward(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us: we still need it to end the run
    )


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
