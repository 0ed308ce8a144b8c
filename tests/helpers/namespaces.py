"""Real hosts on one machine for tests: network namespaces on a bridge, each with an sshd of its own. Needs root."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NETWORK = "10.77.0"
BRIDGE = "quadbr0"
MOST = 8
"""Hosts that are looked for when all are removed."""


@dataclass
class Hosts:
    """The hosts h1, h2, ...: addresses, and the ssh settings to reach them."""

    folder: Path
    addresses: list[str] = field(default_factory=list)
    servers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def add(self, private: Path | None = None) -> None:
        """One host more. private: a folder of which it has its own, empty one."""
        _host(self, len(self.addresses) + 1, private)
        _await_servers(self)

    def ssh(self, **more: object) -> dict[str, object]:
        """A `cluster.ssh` section."""
        options = [f"UserKnownHostsFile={self.folder}/known_hosts", "StrictHostKeyChecking=yes"]
        own = {"hosts": self.addresses, "user": "root", "key": str(self.folder / "client"), "options": options}
        return own | {"port": 2222, "python": sys.executable} | more

    def run(self, number: int, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command on a host (from 1)."""
        return subprocess.run(["ip", "netns", "exec", f"quad{number}", *command], capture_output=True, text=True)

    def cut(self, number: int) -> None:
        """Pull a host's cable."""
        subprocess.run(["ip", "link", "set", f"quadv{number}", "down"], check=True)

    def mend(self, number: int) -> None:
        """Put it back."""
        subprocess.run(["ip", "link", "set", f"quadv{number}", "up"], check=True)

    def kill(self, number: int, name: str) -> list[int]:
        """SIGKILL for the processes of this name on a host: their ids."""
        pids = [pid for pid in self.inside(number) if Path(f"/proc/{pid}/comm").read_text().strip() == name]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    def inside(self, number: int) -> list[int]:
        """Processes that run on a host, its sshd left out."""
        listed = subprocess.run(["ip", "netns", "pids", f"quad{number}"], capture_output=True, text=True).stdout
        own = {server.pid for server in self.servers}
        pids = [int(pid) for pid in listed.split() if int(pid) not in own]
        return [pid for pid in pids if not _sshd(pid)]


def _sshd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    except OSError:
        return True


def missing() -> str | None:
    """Why there can be no such hosts here."""
    if os.geteuid():
        return "network namespaces need root"
    for program in ("ip", "/usr/sbin/sshd", "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    done = subprocess.run(["ip", "netns", "add", "quadprobe"], capture_output=True, text=True)
    if done.returncode:
        return f"network namespaces are not allowed here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "quadprobe"], check=True)
    return None


@contextmanager
def hosts(folder: Path, count: int) -> Iterator[Hosts]:
    """So many hosts, gone with the block together with everything that ran on them."""
    if reason := missing():
        pytest.skip(reason)
    made = Hosts(folder)
    _remove()
    try:
        _sh(f"ip link add {BRIDGE} type bridge")
        _sh(f"ip addr add {NETWORK}.254/24 dev {BRIDGE}")
        _sh(f"ip link set {BRIDGE} up")
        for name in ("client", "host"):
            _sh(f"ssh-keygen -q -t ed25519 -N '' -f {folder}/{name}")
        shutil.copy(folder / "client.pub", folder / "authorized_keys")
        Path("/run/sshd").mkdir(exist_ok=True)
        for number in range(1, count + 1):
            _host(made, number)
        _await_servers(made)
        yield made
    finally:
        for server in made.servers:
            server.kill()
            server.wait()
        _remove()


def _host(made: Hosts, number: int, private: Path | None = None) -> None:
    name, veth, address = f"quad{number}", f"quadv{number}", f"{NETWORK}.{number}"
    _sh(f"ip netns add {name}")
    _sh(f"ip link add {veth} type veth peer name eth0 netns {name}")
    _sh(f"ip link set {veth} master {BRIDGE} up")
    _sh(f"ip -n {name} addr add {address}/24 dev eth0")
    _sh(f"ip -n {name} link set eth0 up")
    _sh(f"ip -n {name} link set lo up")
    config = made.folder / f"sshd{number}.conf"
    config.write_text(
        f"Port 2222\nListenAddress {address}\nHostKey {made.folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {made.folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    )
    server = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    if private is not None:
        mount = f"mount -t tmpfs quadriga-test {shlex.quote(str(private))} && exec {shlex.join(server)}"
        server = ["unshare", "--mount", "sh", "-c", mount]
    command = ["ip", "netns", "exec", name, *server]
    made.servers.append(subprocess.Popen(command, stderr=(made.folder / f"sshd{number}.log").open("wb")))
    made.addresses.append(address)
    public = (made.folder / "host.pub").read_text().split()[:2]
    with (made.folder / "known_hosts").open("a") as known:
        known.write(f"[{address}]:2222 {' '.join(public)}\n")


def _await_servers(made: Hosts) -> None:
    import socket

    deadline = time.monotonic() + 20
    for address in made.addresses:
        while True:
            try:
                socket.create_connection((address, 2222), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, f"no sshd at {address}"
                time.sleep(0.1)


def _remove() -> None:
    """End what runs on the hosts, then the hosts; also those that an earlier test left."""
    for number in range(1, MOST + 1):
        listed = subprocess.run(["ip", "netns", "pids", f"quad{number}"], capture_output=True, text=True).stdout
        for pid in listed.split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", f"quad{number}"], capture_output=True)
        subprocess.run(["ip", "link", "del", f"quadv{number}"], capture_output=True)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def _sh(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
