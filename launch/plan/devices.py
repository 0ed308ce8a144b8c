"""Which processes share a GPU or a host, what each of these has to hold, and what would make a stage fit."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil, inf
from typing import Any, Literal

from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import UserError
from quadriga.launch.plan.memory import Footprint, engine_footprint, host_footprint
from quadriga.launch.plan.stages import PlannedStage
from quadriga.orchestrator.cluster.placement import Machine, ResourceRequest, place, resource_requests

GPUS_PER_HOST = 8
"""As in DGX and HGX machines; where the config says how many a node has, it is as many."""

LIBRARIES = 3 << 30
"""Host memory of a process on a GPU: the libraries that it loads, CUDA's side of pinned memory. An allowance."""

LARGEST_CLUSTER = 1024


@dataclass(frozen=True)
class Device:
    """A kind of GPU (or the machine, on CPU) and how many there are of it. bytes: the sum of its processes' peaks.

    Peaks are added even where phases take turns: a process does not give back to others what it once allocated.
    """

    kind: Literal["gpu", "host"]
    count: int
    roles: list[str]
    bytes: int


@dataclass(frozen=True)
class Layout:
    """A stage's processes: role -> footprint of each, and what they add up to."""

    footprints: dict[str, Footprint]
    devices: list[Device]
    gpus: int

    def fits(self, gpu_memory: int, host_memory: int | None) -> bool:
        """Whether every device holds what is on it. host_memory: None where it is not known."""
        hosts = [device.bytes for device in self.devices if device.kind == "host"]
        gpus = [device.bytes for device in self.devices if device.kind == "gpu"]
        return max(gpus, default=0) <= gpu_memory and (host_memory is None or max(hosts) <= host_memory)


@dataclass(frozen=True)
class Suggestion:
    """Overrides under which a stage fits, and the GPUs that it then takes."""

    gpus: int
    overrides: list[str]


def layout(stage: PlannedStage, device: str) -> Layout:
    """Where the processes of a stage sit and what they need, on as many machines as it takes.

    Raises UserError for a placement that no cluster can give.
    """
    footprints: dict[str, Footprint] = {m.role: host_footprint(m, stage, device) for m in stage.members}
    if stage.engine is not None:
        footprints["rollout"] = engine_footprint(stage, device)
    if device == "cpu":
        requests = _wishes(stage)
        total = sum(footprint.peak * requests[role].count for role, footprint in footprints.items())
        return Layout(footprints, [Device("host", 1, list(footprints), total)], 0)
    hosts = seated(stage)
    gpus = [gpu for host in hosts for gpu in host]
    kinds = Counter(map(tuple, gpus))
    devices = [
        Device("gpu", number, _distinct(roles), sum(footprints[role].peak for role in roles))
        for roles, number in kinds.items()
    ]
    return Layout(footprints, [*devices, _fullest(hosts, footprints)], len(gpus))


def seated(stage: PlannedStage) -> list[list[list[str]]]:
    """The processes of every GPU of every machine, each by its role.

    `auto` separates them: how many GPUs a cluster has is not known before it is up. Raises UserError for a placement
    that no cluster can give.
    """
    requests = _wishes(stage)
    enough = sum(request.nodes or 0 for request in requests.values()) + ceil(
        sum(w.count * w.gpus for w in requests.values())
    )
    machines = [Machine(f"host {name}", inf, inf) for name in range(enough)]
    placement = place(requests, "cuda", stage.cluster.placement, machines)
    residents: dict[tuple[int | None, int], list[str]] = defaultdict(list)
    for role, slots in placement.slots.items():
        for slot in slots:
            residents[slot.group, slot.bundle].append(role)
    hosts: list[list[list[str]]] = []
    most = _gpus_of_a_host(stage.cluster)
    for number, group in enumerate(placement.groups):
        roles = [(residents[number, bundle], group.bundles[bundle]["GPU"]) for bundle in range(len(group.bundles))]
        gpus = list(_gpus(roles))
        hosts += [gpus[start : start + most] for start in range(0, len(gpus), most)]
    return hosts


def smallest(stage: PlannedStage, gpu_memory: int, host_memory: int | None) -> Suggestion | None:
    """The fewest GPUs that hold a stage when every role is divided over all of them by ZeRO-3; None: no number does.

    Token budgets and offload stay as they are; engines span as few GPUs as their weights and cache need.
    """
    size = 1
    while size <= LARGEST_CLUSTER and not _spread_fits(stage, size, gpu_memory, host_memory):
        size *= 2
    for gpus in range(size // 2 + 1, min(size, LARGEST_CLUSTER) + 1):
        if overrides := _spread_fits(stage, gpus, gpu_memory, host_memory):
            return Suggestion(gpus, _words(stage, overrides))
    return None


def on_the_same_gpus(stage: PlannedStage, gpu_memory: int, host_memory: int | None) -> Suggestion | None:
    """Changes that make a stage fit on as many GPUs as it has, the cheaper ones first; None: they do not suffice.

    ZeRO-3 for every role; smaller token budgets, down to the longest sequence; engines over more GPUs each; optimizer
    states in host memory; weights there too. What turns out to be needless is left out again, the dearest first.
    """
    overrides: dict[str, Any] = {}

    def fits(changes: dict[str, Any]) -> bool:
        return _fits(_with(stage, changes), gpu_memory, host_memory)

    for change in _cheaper(stage):
        overrides |= change
        if fits(overrides):
            break
    else:
        return None
    for key in reversed(list(overrides)):
        # An engine's workers and the GPUs of each change together.
        going = {"rollout.workers", "rollout.tensor_parallel"} if key.startswith("rollout.") else {key}
        without = {other: value for other, value in overrides.items() if other not in going}
        if fits(without):
            overrides = without
    return Suggestion(layout(_with(stage, overrides), "cuda").gpus, _words(stage, overrides))


def _cheaper(stage: PlannedStage) -> Iterator[dict[str, Any]]:
    roles = [member.role for member in stage.members]
    trained = [member.role for member in stage.members if member.trained]
    yield {f"{role}.zero_stage": 3 for role in roles}
    for key in ("train_tokens", "forward_tokens"):
        tokens = getattr(stage.cluster, key)
        while tokens // 2 >= stage.longest:
            tokens //= 2
            yield {key: tokens}
    if stage.engine is not None and not _engine_shares(stage):
        workers, parallel = stage.cluster.rollout.workers, stage.cluster.rollout.tensor_parallel
        while workers % 2 == 0 and parallel < 8 and _divides(stage, 2 * parallel):
            workers, parallel = workers // 2, parallel * 2
            yield {"rollout.workers": workers, "rollout.tensor_parallel": parallel}
    yield {f"{role}.offload": "optimizer" for role in trained}
    yield {f"{role}.offload": "all" for role in roles}


def _spread_fits(stage: PlannedStage, gpus: int, gpu_memory: int, host_memory: int | None) -> dict[str, Any] | None:
    """Overrides that divide a stage over so many GPUs, where it then fits."""
    for overrides in _spreads(stage, gpus):
        if _fits(_with(stage, overrides), gpu_memory, host_memory):
            return overrides
    return None


def _fits(stage: PlannedStage, gpu_memory: int, host_memory: int | None) -> bool:
    """Whether it can be placed and every device holds what is on it."""
    try:
        return layout(stage, "cuda").fits(gpu_memory, host_memory)
    except UserError:
        return False


def _spreads(stage: PlannedStage, gpus: int) -> Iterator[dict[str, Any]]:
    """Ways to use so many GPUs: models and engines on all of them, or one engine on some that it has to itself."""
    roles = [member.role for member in stage.members]

    def models(ranks: int) -> dict[str, Any]:
        return {f"{role}.{key}": value for role in roles for key, value in (("ranks", ranks), ("zero_stage", 3))}

    if stage.engine is None:
        yield ({"placement": "colocate"} if len(roles) > 1 else {}) | models(gpus)
        return
    engine = {"rollout.tensor_parallel": 1, "rollout.workers": gpus}
    yield ({"placement": "colocate"} if roles else {}) | models(gpus) | engine
    for parallel in (size for size in (1, 2, 4, 8) if _divides(stage, size)):
        engine = {"rollout.tensor_parallel": parallel, "rollout.workers": 1}
        if not roles and gpus % parallel == 0:
            yield engine | {"rollout.workers": gpus // parallel}
        elif roles and gpus > parallel:
            yield {"placement": [roles, ["rollout"]]} | models(gpus - parallel) | engine


def _engine_shares(stage: PlannedStage) -> bool:
    """Whether engines and models are on the same GPUs, where an engine may have one only."""
    return any("rollout" in gpu and len(set(gpu)) > 1 for host in seated(stage) for gpu in host)


def _divides(stage: PlannedStage, parallel: int) -> bool:
    """vLLM gives every GPU as many heads."""
    return stage.engine is None or stage.engine.heads % parallel == 0


def _with(stage: PlannedStage, overrides: dict[str, Any]) -> PlannedStage:
    data = stage.cluster.model_dump()
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        (data[section] if section else data)[name] = value
    return replace(stage, cluster=ClusterSettings.model_validate(data))


def _words(stage: PlannedStage, overrides: dict[str, Any]) -> list[str]:
    """As on the command line, without what is so already."""
    before = stage.cluster.model_dump()
    result = []
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        if (before[section] if section else before)[name] != value:
            result.append(f"cluster.{key}={_plain(value)}")
    return result


def _plain(value: Any) -> str:
    """As YAML reads it, without spaces that a shell would split at."""
    return f"[{','.join(map(_plain, value))}]" if isinstance(value, list) else str(value)


def _wishes(stage: PlannedStage) -> dict[str, ResourceRequest]:
    return resource_requests(stage.cluster, [member.role for member in stage.members], stage.engine is not None)


def _gpus_of_a_host(cluster: ClusterSettings) -> int:
    if cluster.slurm is not None and cluster.slurm.gpus:
        return cluster.slurm.gpus
    if cluster.kubernetes is not None and cluster.kubernetes.worker.gpus:
        return cluster.kubernetes.worker.gpus
    return GPUS_PER_HOST


def _gpus(bundles: list[tuple[list[str], float]]) -> Iterator[list[str]]:
    """The roles of every GPU: an engine's bundle spans several, and bundles of a part of a GPU share one."""
    for (roles, gpus), alike in groupby(bundles, lambda bundle: (tuple(bundle[0]), bundle[1])):
        number = len(list(alike))
        if gpus >= 1:
            yield from [list(roles)] * (number * ceil(gpus))
            continue
        each = max(1, int(1 / gpus)) if gpus else 1
        yield from (list(roles) * min(each, number - start) for start in range(0, number, each))


def _fullest(hosts: list[list[list[str]]], footprints: dict[str, Footprint]) -> Device:
    """The host with most to hold."""
    needs = [
        (sum(LIBRARIES + sum(footprints[role].host.values()) for gpu in host for role in gpu), host) for host in hosts
    ]
    most, fullest = max(needs, key=lambda need: need[0])
    return Device("host", len(hosts), _distinct(role for gpu in fullest for role in gpu), most)


def _distinct(roles: Any) -> list[str]:
    return list(dict.fromkeys(roles))
