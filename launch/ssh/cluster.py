"""`quadriga launch` over ssh: starts Ray on every host, runs the config as a job on the head, and ends Ray after it."""

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
from quadriga.data.errors import INTERRUPTED, Fault, UserError
from quadriga.launch.config.error_messages import summary
from quadriga.launch.config.load import resolved
from quadriga.launch.jobs.client import ENDED, attempts, await_server
from quadriga.launch.jobs.control import stop_job
from quadriga.launch.jobs.logs import follow
from quadriga.launch.jobs.package import CONFIG, on_cluster
from quadriga.launch.jobs.submit import JobPackage, submit
from quadriga.launch.ssh.checks import Facts
from quadriga.launch.ssh.hosts import Host, call_all, hosts_of, ssh_settings, tunnel
from quadriga.launch.ssh.preflight import CLIENT_PORT_OFFSET, NODE_PORTS, PreflightReport, run_preflight
from quadriga.orchestrator.stages.registry import AnyStage

UP_SECONDS = 120.0
"""Longest time for Ray to start on a host."""
DOWN_SECONDS = 60.0
"""Longest time for Ray to end on a host."""
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "{state}/token",
    # With these a host without network is declared lost after about 20 s; Ray's defaults take over a minute.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}


def start_order(name: str, host: Host, facts: Facts, head: str | None, files: dict[str, str]) -> dict[str, Any]:
    """Return the order for `remote.up`. head: address of the head, or None on the head itself."""
    paths = _remote_paths(name, host.name)
    command = [*ray_command(host.settings, facts.address, facts.cores, head), f"--temp-dir={paths['temporary']}"]
    environment = driver_environment() | RAY_SETTINGS
    return paths | {"command": command, "environment": environment, "files": files, "seconds": UP_SECONDS}


def ray_command(settings: SshSettings, address: str, cores: int | str, head: str | None) -> list[str]:
    """Return the `ray start` command of one host: in the foreground, with every port fixed."""
    low, high = settings.worker_ports
    command = [settings.python, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={address}", f"--num-cpus={cores}"]
    command += [f"--{option}={low + offset}" for offset, option in enumerate(NODE_PORTS)]
    command += [f"--min-worker-port={low + CLIENT_PORT_OFFSET + 1}", f"--max-worker-port={high}"]
    if head is not None:
        return [*command, f"--address={head}:{settings.ray_port}"]
    command += ["--head", f"--port={settings.ray_port}", f"--ray-client-server-port={low + CLIENT_PORT_OFFSET}"]
    return [*command, "--dashboard-host=127.0.0.1", f"--dashboard-port={settings.dashboard_port}"]


def bring_up(stage: AnyStage, report: PreflightReport, token: str, console: Console) -> None:
    """Start Ray on the head, then on all others at once. token: secret that protects the cluster and its jobs.

    When a host fails, end Ray on all of them and raise Fault with the host's name.
    """
    settings = ssh_settings(stage)
    head, *others = hosts_of(settings)
    variables = "".join(f"{key}={os.environ[key]}\n" for key in settings.environment)

    def start(host: Host) -> str | None:
        at_head = host is head
        files = {"token": token} | ({"environment": variables} if at_head else {})
        address = None if at_head else report.facts[head.name].address
        order = start_order(stage.name, host, report.facts[host.name], address, files)
        return host.call("up", order, UP_SECONDS + DOWN_SECONDS)

    for group in ([head], others):
        errors, failures = call_all(group, start)
        failures |= {name: error for name, error in errors.items() if error}
        if failures:
            bring_down(stage.name, settings, console)
            name, reason = next(iter(failures.items()))
            raise Fault(f"Ray did not start on {name}: {reason}", phase="start", process=name)


def bring_down(name: str, settings: SshSettings, console: Console) -> int:
    """End the processes that this run started on the hosts, and no others. Return the number of processes."""
    ended, failures = call_all(hosts_of(settings), lambda h: h.call("down", _remote_paths(name, h.name), DOWN_SECONDS))
    for host, reason in failures.items():
        console.print(f"{host}: Ray could not be ended there: {reason}.", style="yellow", markup=False)
    return sum(ended.values())


def launch(
    stage: AnyStage,
    config: Path,
    overrides: Sequence[str],
    working_dir: Path | None,
    shared: Sequence[Path],
    console: Console,
) -> int:
    """Start Ray on the hosts, run the config as a job, follow it, end Ray, and return the run's exit code.

    working_dir, shared: as in `submit.JobPackage`. When the cluster of this run is already up, for example because this
    machine was switched off meanwhile, follow its job instead of starting one.
    Raises UserError for problems that `quadriga hosts` reports, before anything is started.
    """
    settings = ssh_settings(stage)
    require_environment(settings)
    head = hosts_of(settings)[0]
    cluster = call_all([head], lambda h: h.call("find_cluster", _remote_paths(stage.name, h.name), DOWN_SECONDS))[
        0
    ].get(head.name)
    if cluster and cluster["processes"] and cluster["token"]:
        console.print("The cluster of this run is already up: using it.", highlight=False)
        token = cluster["token"]
    else:
        token = secrets.token_hex(32)
        bring_up(stage, require_sound_hosts(stage, console), token, console)
        cluster = head.call("find_cluster", _remote_paths(stage.name, head.name), DOWN_SECONDS)
    try:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        with tunnel(head, settings.dashboard_port) as address:
            file = Path(cluster["state"]) / "environment" if settings.environment else None
            package = JobPackage(working_dir, shared, (), settings.environment, file, settings.python)
            return _run(stage, config, overrides, package, address, console)
    finally:
        with console.status("Ending Ray on the hosts"):
            bring_down(stage.name, settings, console)


def require_sound_hosts(stage: AnyStage, console: Console) -> PreflightReport:
    """Check the hosts and print their facts. Raises UserError for problems that must be fixed first."""
    with console.status(f"Checking {len(ssh_settings(stage).hosts)} hosts"):
        report = run_preflight(stage)
    if report.facts:
        console.print(report.table(ssh_settings(stage)))
    if report.problems:
        raise UserError(summary([f"{problem.subject}: {problem.text}" for problem in report.problems]))
    return report


def _run(
    stage: AnyStage, config: Path, overrides: Sequence[str], package: JobPackage, address: str, console: Console
) -> int:
    """Submit the run unless it is running, and follow it. Ctrl-C stops it cleanly; a second one does not wait."""
    client = await_server(address)
    running = [job for job in attempts(client, stage.name) if job.status not in ENDED]
    job = running[-1].submission_id if running else submit(client, config, overrides, package)
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        console.print("\nThe run finishes its step, saves and exits. Press Ctrl-C again not to wait.", highlight=False)
        stop_job(client, client.get_job_info(job))
        return INTERRUPTED


def print_dry_run(stage: AnyStage, console: Console) -> None:
    """Print the commands that `launch` would run on every host, and the config of the run."""
    settings = ssh_settings(stage)
    head, *others = hosts_of(settings)
    for host in (head, *others):
        joins = None if host is head else f"<address of {head.name}>"
        command = ray_command(settings, f"<address of {host.name}>", "<cores>", joins)
        console.print(f"# {host.name}: check facts, ports and the run directory, then", style="dim", highlight=False)
        console.print(shlex.join([*host.ssh(), shlex.join(command)]), highlight=False, markup=False, soft_wrap=True)
    console.print("# the run, as a job on the head", style="dim", highlight=False)
    tunnel_command = head.ssh("-N", "-L", f"<port>:127.0.0.1:{settings.dashboard_port}")
    console.print(shlex.join(tunnel_command), highlight=False, markup=False, soft_wrap=True)
    console.print(f"{settings.python} -m quadriga.launch.job_main {stage.run_dir}", highlight=False, markup=False)
    console.print(f"# {CONFIG}", style="dim", highlight=False)
    console.print(yaml.safe_dump(on_cluster(resolved(stage)), sort_keys=False), highlight=False, markup=False)
    console.print("# finally, end every process that those `ray start` commands started", style="dim", highlight=False)


def require_environment(settings: SshSettings) -> None:
    """Raise UserError for a variable of `cluster.ssh.environment` that is not set here, or that has several lines."""
    for name in settings.environment:
        if name not in os.environ:
            raise UserError(f"cluster.ssh.environment names {name}, which is not set here: set it, or leave it out.")
        if len(os.environ[name].splitlines()) > 1:
            raise UserError(
                f"cluster.ssh.environment names {name}, whose value has several lines, and only single lines can be "
                "sent. Put it into a file that the hosts see, and name the file instead."
            )


def _remote_paths(name: str, host: str) -> dict[str, str]:
    """Return the mark and the folders of this run on a host. Ray's folder is short: socket paths must not be long."""
    mark = f"{name}/{host}"  # marks the processes of this run on this host
    digest = hashlib.blake2b(mark.encode(), digest_size=5).hexdigest()
    return {"mark": mark, "state": f"~/.cache/quadriga/launch/{digest}", "temporary": f"/tmp/quadriga-{digest}"}
