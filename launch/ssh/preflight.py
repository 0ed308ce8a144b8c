"""Preflight checks of `quadriga hosts`: facts of every host, connections both ways, a shared run directory."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from quadriga.actors.launcher_settings import SshSettings
from quadriga.data.errors import UserError
from quadriga.launch.checks.machine import pins
from quadriga.launch.checks.report import CheckResult
from quadriga.launch.checks.stage import check_placement, check_tensor_parallel
from quadriga.launch.config.load import single_stages
from quadriga.launch.ssh.checks import Facts, check_addresses, check_connections, check_host, check_sharing, facts_of
from quadriga.launch.ssh.hosts import Host, call_all, check_connectivity, hosts_of, ssh_settings
from quadriga.orchestrator.cluster.placement import Machine
from quadriga.orchestrator.stages.registry import AnyStage

FACTS_SECONDS = 60.0
LISTEN_SECONDS = 6.0
NODE_PORTS = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
"""Options of `ray start` for the ports of every node: they get the first ones of `cluster.ssh.worker_ports`."""
CLIENT_PORT_OFFSET = len(NODE_PORTS)
"""Position in `cluster.ssh.worker_ports` of the Ray client's port, which only the head has."""


@dataclass
class PreflightReport:
    """Facts by host, and the results of all checks."""

    facts: dict[str, Facts] = field(default_factory=dict)
    results: list[CheckResult] = field(default_factory=list)

    @property
    def problems(self) -> list[CheckResult]:
        """Return the results that must be fixed before a run."""
        return [result for result in self.results if result.level == "problem"]

    def table(self, settings: SshSettings) -> Table:
        """Return a table of the facts with one row per host."""
        table = Table(box=None, header_style="dim")
        for column in ("host", "address", "Python", "cores", "memory", "GPUs", "disk free", "clock", ""):
            table.add_column(column)
        for name in settings.hosts:
            facts = self.facts.get(name)
            count = sum(problem.subject == name for problem in self.problems)
            mark = f"[red]{count} problem{'s' * (count > 1)}[/red]" if count else "[green]ok[/green]"
            if facts is None:
                table.add_row(name, *["?"] * 7, mark)
                continue
            gpus = f"{len(facts.gpus)} x {facts.gpus[0] >> 30} GB" if facts.gpus else "none"
            python = ".".join(map(str, facts.python))
            sizes = f"{facts.memory >> 30} GB", gpus, f"{facts.disk >> 30} GB", f"{facts.clock_skew:+.1f} s"
            table.add_row(name, facts.address, python, str(facts.cores), *sizes, mark)
        return table


def run_preflight(stage: AnyStage) -> PreflightReport:
    """Check the hosts of `stage.cluster.ssh`. Each kind of check needs the earlier ones to have passed."""
    settings, report = ssh_settings(stage), PreflightReport()
    if stage.run_dir is None or not Path(stage.run_dir).is_absolute():
        text = f"`run_dir` is {stage.run_dir or 'not set'}: give an absolute path on storage that every host mounts."
        report.results.append(CheckResult("problem", stage.name, text))
        return report
    hosts, run_dir = hosts_of(settings), stage.run_dir
    _collect_facts(hosts, settings, run_dir, report)
    if not report.problems:
        _check_connections(hosts, settings, report)
    if not report.problems:
        _check_sharing(hosts, run_dir, report)
    if not report.problems:
        _check_placement(stage, report)
    return report


def node_ports(settings: SshSettings) -> list[int]:
    """Return the fixed ports of every node, and the first and the last port of its workers."""
    low, high = settings.worker_ports
    return [*range(low, low + CLIENT_PORT_OFFSET), low + CLIENT_PORT_OFFSET + 1, high]


def _collect_facts(hosts: Sequence[Host], settings: SshSettings, run_dir: str, report: PreflightReport) -> None:
    required = pins()

    def collect(host: Host) -> Facts:
        ports = [*node_ports(settings), *([settings.ray_port, settings.dashboard_port] if host is hosts[0] else [])]
        before = time.time()
        answer = host.call("facts", {"packages": list(required), "ports": ports, "folder": run_dir}, FACTS_SECONDS)
        return facts_of(answer, before, time.time())

    report.facts, failures = call_all(hosts, collect)
    report.results += [CheckResult("problem", name, f"{reason}.") for name, reason in failures.items()]
    head = report.facts.get(hosts[0].name)
    for name, facts in report.facts.items():
        report.results += check_host(name, facts, head or facts, required)
    report.results += check_addresses(report.facts)


def _check_connections(hosts: Sequence[Host], settings: SshSettings, report: PreflightReport) -> None:
    if len(hosts) == 1:
        return
    head = hosts[0].name

    def ports(name: str) -> list[int]:
        return [*([settings.ray_port] if name == head else []), *node_ports(settings)]

    addresses = {name: facts.address for name, facts in report.facts.items()}
    report.results += check_connections(check_connectivity(hosts, addresses, ports, LISTEN_SECONDS), head)


def _check_sharing(hosts: Sequence[Host], run_dir: str, report: PreflightReport) -> None:
    token = secrets.token_hex(4)
    names = {host.name: f".quadriga-{token}-{number}" for number, host in enumerate(hosts)}
    write_errors, _ = call_all(
        hosts, lambda h: h.call("write_marker", {"folder": run_dir, "name": names[h.name]}, FACTS_SECONDS)
    )
    seen, _ = call_all(
        hosts, lambda h: h.call("find_markers", {"folder": run_dir, "names": list(names.values())}, FACTS_SECONDS)
    )
    call_all(hosts, lambda h: h.call("remove_marker", {"folder": run_dir, "name": names[h.name]}, FACTS_SECONDS))
    owners = {file: name for name, file in names.items()}
    by_host = {name: [owners[file] for file in files] for name, files in seen.items()}
    report.results += check_sharing(run_dir, write_errors, by_host)


def _check_placement(stage: AnyStage, report: PreflightReport) -> None:
    machines = [Machine(facts.address, facts.cores, len(facts.gpus)) for facts in report.facts.values()]
    for name, single in single_stages(stage):
        device = single.cluster.device
        if device == "auto":
            device = "cuda" if any(machine.gpus for machine in machines) else "cpu"
        try:
            check_tensor_parallel(single)
            check_placement(single, device, machines)
        except UserError as error:
            report.results.append(CheckResult("problem", name, str(error)))
