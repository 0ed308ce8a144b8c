"""`quadriga launch` over ssh: Ray up on every host, the run as a job on the head, everything ended afterwards."""

import hashlib
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from quadriga.actors.launcher_settings import SshSettings
from quadriga.actors.runtime.device import driver_environment
from quadriga.data.errors import Fault, UserError
from quadriga.launch.config.error_messages import summary
from quadriga.launch.config.load import resolved
from quadriga.launch.jobs.client import ENDED, INTERRUPTED, attempts, connect
from quadriga.launch.jobs.logs import follow
from quadriga.launch.jobs.package import CONFIG, on_cluster
from quadriga.launch.jobs.stop import stop_job
from quadriga.launch.jobs.submit import JobPackage, submit
from quadriga.launch.ssh.checks import Facts
from quadriga.launch.ssh.hosts import Host, all_of, hosts_of, tunnel
from quadriga.launch.ssh.preflight import CLIENT, NODE_PORTS, PreflightReport, run_preflight

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


def start_order(name: str, host: Host, facts: Facts, head: str | None, files: dict[str, str]) -> dict[str, Any]:
    """The order for `remote.up`. head: the head's address, None on the head itself."""
    below = _below(name, host.name)
    command = [*ray_command(host.settings, facts.address, facts.cores, head), f"--temp-dir={below['temporary']}"]
    environment = driver_environment() | RAY_SETTINGS
    return below | {"command": command, "environment": environment, "files": files, "seconds": UP_SECONDS}


def ray_command(settings: SshSettings, address: str, cores: int | str, head: str | None) -> list[str]:
    """`ray start` on one host, in the foreground, with every port of its own fixed."""
    low, high = settings.worker_ports
    words = [settings.python, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    words += [f"--node-ip-address={address}", f"--num-cpus={cores}"]
    words += [f"--{option}={low + place}" for place, option in enumerate(NODE_PORTS)]
    words += [f"--min-worker-port={low + CLIENT + 1}", f"--max-worker-port={high}"]
    if head is not None:
        return [*words, f"--address={head}:{settings.ray_port}"]
    words += ["--head", f"--port={settings.ray_port}", f"--ray-client-server-port={low + CLIENT}"]
    return [*words, "--dashboard-host=127.0.0.1", f"--dashboard-port={settings.dashboard_port}"]


def bring_up(stage: Any, found: PreflightReport, token: str, console: Console) -> None:
    """Start Ray on the head, then on all others at once. Raises Fault, naming the host, after ending what started.

    token: whoever joins the cluster or its jobs must have it.
    """
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
            raise Fault(f"Ray did not start on {name}: {reason}", phase="start", process=name)


def bring_down(name: str, settings: SshSettings, console: Console) -> int:
    """End what this run started on the hosts, and nothing else. Returns how many processes there were."""
    ended, failures = all_of(hosts_of(settings), lambda h: h.call("down", _below(name, h.name), DOWN_SECONDS))
    for host, reason in failures.items():
        console.print(f"{host}: nothing could be ended there: {reason}.", style="yellow", markup=False)
    return sum(ended.values())


def launch(
    stage: Any,
    config: Path,
    overrides: Sequence[str],
    working_dir: Path | None,
    shared: Sequence[Path],
    console: Console,
) -> int:
    """Bring a cluster up, run the config on it as a job, follow it, end the cluster; returns the run's exit code.

    working_dir, shared: as in `submit.JobPackage`. A cluster of this run that is already up (this machine was switched
    off, say) is joined, and its job followed.
    Raises UserError for what `quadriga hosts` would find wrong, before anything is started.
    """
    settings = stage.cluster.ssh
    require_environment(settings)
    head = hosts_of(settings)[0]
    there = all_of([head], lambda h: h.call("found", _below(stage.name, h.name), DOWN_SECONDS))[0].get(head.name)
    if there and there["processes"] and there["token"]:
        console.print("The cluster of this run is up already: going on with it.", highlight=False)
        token = there["token"]
    else:
        token = secrets.token_hex(32)
        bring_up(stage, require_sound_hosts(stage, console), token, console)
        there = head.call("found", _below(stage.name, head.name), DOWN_SECONDS)
    try:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        with tunnel(head, settings.dashboard_port) as address:
            file = Path(there["state"]) / "environment" if settings.environment else None
            package = JobPackage(working_dir, shared, (), settings.environment, file, settings.python)
            return _run(stage, config, overrides, package, address, console)
    finally:
        with console.status("Ending Ray on the hosts"):
            bring_down(stage.name, settings, console)


def require_sound_hosts(stage: Any, console: Console) -> PreflightReport:
    """What the hosts say. Raises UserError, one paragraph, for what must be mended first."""
    with console.status(f"Looking at {len(stage.cluster.ssh.hosts)} hosts"):
        found = run_preflight(stage)
    if found.facts:
        console.print(found.table(stage.cluster.ssh))
    if found.problems:
        raise UserError(summary([f"{problem.subject}: {problem.text}" for problem in found.problems]))
    return found


def _run(
    stage: Any, config: Path, overrides: Sequence[str], package: JobPackage, address: str, console: Console
) -> int:
    """Submit the run, unless it is running, and follow it. Ctrl-C ends it cleanly; a second one does not wait."""
    client = connect(address)
    running = [job for job in attempts(client, stage.name) if job.status not in ENDED]
    job = running[-1].submission_id if running else submit(client, config, overrides, package)
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        console.print("\nThe run finishes its step, saves and exits. Ctrl-C again will not wait.", highlight=False)
        stop_job(client, client.get_job_info(job))
        return INTERRUPTED


def rehearse(stage: Any, console: Console) -> None:
    """Print what `launch` would do on every host."""
    settings = stage.cluster.ssh
    head, *others = hosts_of(settings)
    for host in (head, *others):
        joins = None if host is head else f"<address of {head.name}>"
        command = ray_command(settings, f"<address of {host.name}>", "<cores>", joins)
        console.print(f"# {host.name}: facts, ports and the run directory, then", style="dim", highlight=False)
        console.print(shlex.join([*host.ssh(), shlex.join(command)]), highlight=False, markup=False, soft_wrap=True)
    console.print("# the run, as a job on the head", style="dim", highlight=False)
    tunnelled = head.ssh("-N", "-L", f"<port>:127.0.0.1:{settings.dashboard_port}")
    console.print(shlex.join(tunnelled), highlight=False, markup=False, soft_wrap=True)
    console.print(f"{settings.python} -m quadriga.launch.job_main {stage.run_dir}", highlight=False, markup=False)
    console.print(f"# {CONFIG}", style="dim", highlight=False)
    console.print(yaml.safe_dump(on_cluster(resolved(stage)), sort_keys=False), highlight=False, markup=False)
    console.print("# however it ends, every process below those `ray start` is ended", style="dim", highlight=False)


def require_environment(settings: SshSettings) -> None:
    """Raises UserError for a variable that the run shall have and that this machine lacks, or cannot send."""
    for name in settings.environment:
        if name not in os.environ:
            raise UserError(f"cluster.ssh.environment names {name}, which is not set here: set it, or leave it out.")
        if len(os.environ[name].splitlines()) > 1:
            raise UserError(
                f"cluster.ssh.environment names {name}, whose value has several lines: the head gets one line for each "
                "variable. Put it into a file that the hosts see, and name the file instead."
            )


def _below(name: str, host: str) -> dict[str, str]:
    """Where the files of this run are on a host. Ray's folder is short: the paths of its sockets may not be long."""
    own = f"{name}/{host}"  # tells the processes of this run on this host from all others
    digest = hashlib.blake2b(own.encode(), digest_size=5).hexdigest()
    return {"mark": own, "state": f"~/.cache/quadriga/launch/{digest}", "temporary": f"/tmp/quadriga-{digest}"}
