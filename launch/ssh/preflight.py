"""The checks of `quadriga hosts`: facts of every host, connections both ways, one run directory for all."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from quadriga.actors.launcher_settings import SshSettings
from quadriga.data.errors import UserError
from quadriga.launch.checks.machine import pins
from quadriga.launch.checks.report import CheckResult
from quadriga.launch.checks.stage import check_placement, heads_divide, single_stages
from quadriga.launch.ssh.checks import Facts, check_addresses, check_connections, check_host, check_sharing, facts_of
from quadriga.launch.ssh.hosts import Host, all_of, check_connectivity, hosts_of
from quadriga.orchestrator.cluster.placement import Machine

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
"""Options of `ray start` for the ports that every node has, in the order of `cluster.ssh.worker_ports`."""
CLIENT = len(NODE_PORTS)
"""Place of the Ray client's port, which only the head has."""


@dataclass
class PreflightReport:
    """What was found: facts by host, and results."""

    facts: dict[str, Facts] = field(default_factory=dict)
    results: list[CheckResult] = field(default_factory=list)

    @property
    def problems(self) -> list[CheckResult]:
        """What must be mended."""
        return [finding for finding in self.results if finding.level == "problem"]

    def table(self, settings: SshSettings) -> Table:
        """A row a host."""
        table = Table(box=None, header_style="dim")
        for column in ("host", "address", "Python", "cores", "memory", "GPUs", "disk free", "clock", ""):
            table.add_column(column)
        for name in settings.hosts:
            facts = self.facts.get(name)
            troubles = sum(finding.subject == name for finding in self.problems)
            mark = f"[red]{troubles} problem{'s' * (troubles > 1)}[/red]" if troubles else "[green]ok[/green]"
            if facts is None:
                table.add_row(name, *["?"] * 7, mark)
                continue
            gpus = f"{len(facts.gpus)} x {facts.gpus[0] >> 30} GB" if facts.gpus else "none"
            python = ".".join(map(str, facts.python))
            sizes = f"{facts.memory >> 30} GB", gpus, f"{facts.disk >> 30} GB", f"{facts.skew:+.1f} s"
            table.add_row(name, facts.address, python, str(facts.cores), *sizes, mark)
        return table


def run_preflight(stage: Any) -> PreflightReport:
    """Look at the hosts of `stage.cluster.ssh`. Later checks need the earlier ones to have passed."""
    settings, found = stage.cluster.ssh, PreflightReport()
    if stage.run_dir is None or not Path(stage.run_dir).is_absolute():
        said = f"`run_dir` is {stage.run_dir or 'not set'}: give an absolute path on storage that every host mounts."
        found.results.append(CheckResult("problem", stage.name, said))
        return found
    hosts, run_dir = hosts_of(settings), stage.run_dir
    _collect_facts(hosts, settings, run_dir, found)
    if not found.problems:
        _check_connections(hosts, settings, found)
    if not found.problems:
        _check_sharing(hosts, run_dir, found)
    if not found.problems:
        _check_placement(stage, found)
    return found


def node_ports(settings: SshSettings) -> list[int]:
    """The fixed ports of every node, and the first and the last that its workers use."""
    low, high = settings.worker_ports
    return [*range(low, low + CLIENT), low + CLIENT + 1, high]


def _collect_facts(hosts: Sequence[Host], settings: SshSettings, run_dir: str, found: PreflightReport) -> None:
    wanted = pins()

    def ask(host: Host) -> Facts:
        ports = [*node_ports(settings), *([settings.ray_port, settings.dashboard_port] if host is hosts[0] else [])]
        before = time.time()
        said = host.call("facts", {"packages": list(wanted), "ports": ports, "folder": run_dir}, FACTS_SECONDS)
        return facts_of(said, before, time.time())

    found.facts, failures = all_of(hosts, ask)
    found.results += [CheckResult("problem", name, f"{reason}.") for name, reason in failures.items()]
    head = found.facts.get(hosts[0].name)
    for name, facts in found.facts.items():
        found.results += check_host(name, facts, head or facts, wanted)
    found.results += check_addresses(found.facts)


def _check_connections(hosts: Sequence[Host], settings: SshSettings, found: PreflightReport) -> None:
    if len(hosts) == 1:
        return
    head = hosts[0].name

    def ports(name: str) -> list[int]:
        return [*([settings.ray_port] if name == head else []), *node_ports(settings)]

    addresses = {name: facts.address for name, facts in found.facts.items()}
    found.results += check_connections(check_connectivity(hosts, addresses, ports, LISTEN_SECONDS), head)


def _check_sharing(hosts: Sequence[Host], run_dir: str, found: PreflightReport) -> None:
    token = secrets.token_hex(4)
    names = {host.name: f".quadriga-{token}-{number}" for number, host in enumerate(hosts)}
    wrote, _ = all_of(
        hosts, lambda h: h.call("write_marker", {"folder": run_dir, "name": names[h.name]}, FACTS_SECONDS)
    )
    seen, _ = all_of(
        hosts, lambda h: h.call("find_markers", {"folder": run_dir, "names": list(names.values())}, FACTS_SECONDS)
    )
    all_of(hosts, lambda h: h.call("remove_marker", {"folder": run_dir, "name": names[h.name]}, FACTS_SECONDS))
    owners = {file: name for name, file in names.items()}
    by_host = {name: [owners[file] for file in files] for name, files in seen.items()}
    found.results += check_sharing(run_dir, wrote, by_host)


def _check_placement(stage: Any, found: PreflightReport) -> None:
    machines = [Machine(facts.address, facts.cores, len(facts.gpus)) for facts in found.facts.values()]
    for single in single_stages(stage):
        device = single.cluster.device
        if device == "auto":
            device = "cuda" if any(machine.gpus for machine in machines) else "cpu"
        try:
            heads_divide(single)
            check_placement(single, device, machines)
        except UserError as error:
            found.results.append(CheckResult("problem", single.name, str(error)))
