"""Hosts of `cluster.ssh`: one connection per host, all called at the same time."""

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
from quadriga.orchestrator.stages.registry import AnyStage

SCRIPT = Path(__file__).with_name("remote.py")
BOOTSTRAP = "import base64,sys;exec(compile(base64.b64decode(sys.stdin.readline()),'remote.py','exec'))"
CONNECT_SECONDS = 10


def ssh_settings(stage: AnyStage) -> SshSettings:
    """Return `cluster.ssh` of a config that names hosts."""
    assert stage.cluster.ssh is not None
    return stage.cluster.ssh


class HostFailure(Exception):
    """Failed call to one host: its name and the reason."""

    def __init__(self, host: str, reason: str):
        super().__init__(f"{host}: {reason}")
        self.host, self.reason = host, reason


class Host:
    """One machine of `cluster.ssh`."""

    def __init__(self, name: str, settings: SshSettings):
        self.name, self.settings = name, settings

    def ssh(self, *options: str) -> list[str]:
        """Return the ssh command to this host, without the remote command. It never asks for a password."""
        settings = self.settings
        command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        command += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-p", str(settings.port)]
        command += [word for option in settings.options for word in ("-o", option)]
        command += ["-i", os.path.expanduser(settings.key)] if settings.key else []
        command += ["-l", settings.user] if settings.user else []
        return [*command, *options, "--", self.name]

    def start(self, verb: str, order: Mapping[str, Any]) -> "subprocess.Popen[str]":
        """Start a verb of remote.py on the host; the first line of its standard output will be the answer."""
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
            pass  # the exit code and standard error say why
        return process

    def call(self, verb: str, order: Mapping[str, Any], seconds: float) -> Any:
        """Run a verb of remote.py on the host and return its answer. Raises HostFailure when it fails or times out."""
        process = self.start(verb, order)
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise HostFailure(self.name, f"no answer within {seconds:.0f} s") from None
        if process.returncode:
            raise HostFailure(self.name, self.describe_exit(process.returncode, errors))
        return json.loads(output)

    def describe_exit(self, code: int, errors: str) -> str:
        """Return why ssh or the interpreter there failed. errors: its standard error."""
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        if code == 255:
            return f"ssh cannot get in ({last})"
        if code in (126, 127):
            return f"`{self.settings.python}` cannot be run there ({last}): set cluster.ssh.python"
        return last


def hosts_of(settings: SshSettings) -> list[Host]:
    """Return all hosts, the head first."""
    return [Host(name, settings) for name in settings.hosts]


def call_all(hosts: Sequence[Host], call: Callable[[Host], Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Call every host at the same time. Return the answers by host, and the reasons of failures by host."""
    answers: dict[str, Any] = {}
    failures: dict[str, str] = {}

    def one(host: Host) -> None:
        try:
            answers[host.name] = call(host)
        except HostFailure as failure:
            failures[host.name] = failure.reason

    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as threads:
        list(threads.map(one, hosts))
    order = [host.name for host in hosts]
    return {n: answers[n] for n in order if n in answers}, {n: failures[n] for n in order if n in failures}


def check_connectivity(
    hosts: Sequence[Host], addresses: Mapping[str, str], ports: Callable[[str], Sequence[int]], seconds: float
) -> dict[str, list[tuple[str, int]]]:
    """Connect every host to the ports of every other; return the (host, port) pairs that each cannot reach.

    ports: returns the ports that a host listens on. seconds: how long to retry. Raises UserError when a call fails.
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
        for process in processes.values():  # they exit at the end of their standard input
            assert process.stdin
            process.stdin.close()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()


@contextmanager
def tunnel(head: Host, port: int) -> Iterator[str]:
    """Forward a port of this machine's loopback to the head's `port` while the block runs; yield the local address.

    Reconnect when the connection breaks. Raises UserError when the first connection fails.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
    command = head.ssh("-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}")
    done = threading.Event()
    process = _forward(command)

    def reconnect() -> None:
        nonlocal process
        while not done.wait(1.0):
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
        reconnecting = threading.Thread(target=reconnect, daemon=True)
        reconnecting.start()
        yield f"http://127.0.0.1:{local}"
        done.set()
        reconnecting.join()
    finally:
        done.set()
        process.terminate()
        process.communicate()


def _forward(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C must not end it: stopping the run needs the tunnel
    )


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
