"""`quadriga launch` over ssh: Ray up on every host, the run as a job on the head, everything ended afterwards."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from quadriga.actors.device import driver_environment
from quadriga.actors.launchers import SshSettings
from quadriga.data.errors import Fault, UserError
from quadriga.launch.host_checks import Facts
from quadriga.launch.hosts import Host, all_of, hosts_of, tunnel
from quadriga.launch.survey import CLIENT, FIXED, Survey

UP_SECONDS = 120.0
DOWN_SECONDS = 60.0
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "{state}/token",
    # A host whose cable was cut is declared lost after some 20 s; by Ray's defaults it takes over a minute.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}


def mark(name: str, host: str) -> str:
    """What tells the processes of this run on this host from all others."""
    return f"{name}/{host}"


def start_order(name: str, host: Host, facts: Facts, head: str | None, files: dict[str, str]) -> dict[str, Any]:
    """The order for `remote.up`. head: the head's address, None on the head itself."""
    below = _below(name, host.name)
    command = [*ray_command(host.settings, facts, head), f"--temp-dir={below['temporary']}"]
    environment = driver_environment() | RAY_SETTINGS
    return below | {"command": command, "environment": environment, "files": files, "seconds": UP_SECONDS}


def ray_command(settings: SshSettings, facts: Facts, head: str | None) -> list[str]:
    """`ray start` on one host, in the foreground, with every port of its own fixed."""
    low, high = settings.worker_ports
    words = [settings.python, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    words += [f"--node-ip-address={facts.address}", f"--num-cpus={facts.cores}"]
    words += [f"--{option}={low + place}" for place, option in enumerate(FIXED)]
    words += [f"--min-worker-port={low + CLIENT + 1}", f"--max-worker-port={high}"]
    if head is not None:
        return [*words, f"--address={head}:{settings.ray_port}"]
    words += ["--head", f"--port={settings.ray_port}", f"--ray-client-server-port={low + CLIENT}"]
    return [*words, "--dashboard-host=127.0.0.1", f"--dashboard-port={settings.dashboard_port}"]


def bring_up(stage: Any, found: Survey, token: str, console: Console) -> None:
    """Start Ray on the head, then on all others at once. Raises Fault, naming the host, after ending what started."""
    settings = stage.cluster.ssh
    head, *others = hosts_of(settings)
    secret = "".join(f"{key}={os.environ[key]}\n" for key in settings.environment)

    def start(host: Host) -> str | None:
        at_head = host is head
        files = {"token": token} | ({"environment": secret} if at_head else {})
        address = None if at_head else found.facts[head.name].address
        order = start_order(stage.name, host, found.facts[host.name], address, files)
        return host.call("up", order, UP_SECONDS + DOWN_SECONDS)

    for group in ([head], others):
        told, failures = all_of(group, start)
        failures |= {name: said for name, said in told.items() if said}
        if failures:
            bring_down(stage.name, settings, console)
            name, reason = next(iter(failures.items()))
            raise Fault(f"Ray did not start on {name}: {reason}", "start", name)


def bring_down(name: str, settings: SshSettings, console: Console) -> int:
    """End what this run started on the hosts, and nothing else. Returns how many processes there were."""
    ended, failures = all_of(hosts_of(settings), lambda h: h.call("down", _below(name, h.name), DOWN_SECONDS))
    for host, reason in failures.items():
        console.print(f"{host}: nothing could be ended there: {reason}.", style="yellow", markup=False)
    return sum(ended.values())


@contextmanager
def cluster(stage: Any, found: Survey, console: Console) -> Iterator[str]:
    """A Ray cluster on the hosts for the block: the address of its job server here. Ended with the block."""
    settings = stage.cluster.ssh
    head = hosts_of(settings)[0]
    token = secrets.token_hex(32)
    with console.status(f"Starting Ray on {len(settings.hosts)} hosts"):
        bring_up(stage, found, token, console)
    try:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        with tunnel(head, settings.dashboard_port) as address:
            yield address
    finally:
        with console.status("Ending Ray on the hosts"):
            bring_down(stage.name, settings, console)


def require_environment(settings: SshSettings) -> None:
    """Raises UserError for a variable that the run shall have and this machine lacks."""
    if missing := [name for name in settings.environment if name not in os.environ]:
        raise UserError(f"cluster.ssh.environment names {missing[0]}, which is not set here: set it, or leave it out.")


def _below(name: str, host: str) -> dict[str, str]:
    """Where the files of this run are on a host. Ray's folder is short: the paths of its sockets may not be long."""
    own = mark(name, host)
    digest = hashlib.blake2b(own.encode(), digest_size=5).hexdigest()
    return {"mark": own, "state": f"~/.cache/quadriga/launch/{digest}", "temporary": f"/tmp/quadriga-{digest}"}
