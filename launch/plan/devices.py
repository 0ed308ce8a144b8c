"""Which processes share a GPU or a host, what each of these has to hold, and changes under which it fits."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil, inf
from operator import attrgetter, itemgetter
from typing import Any, Literal

from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import UserError
from quadriga.launch.plan.memory import Footprint, engine_footprint, host_footprint
from quadriga.launch.plan.workload import PlannedStage
from quadriga.orchestrator.cluster.placement import Machine, place, resource_requests

GPUS_PER_HOST = 8  # as in DGX and HGX machines, where the config does not say how many a node has
LARGEST_CLUSTER = 1024  # GPUs
LIBRARIES = 3 << 30  # an allowance for a GPU process on its host: libraries, and CUDA's side of pinned memory

Changes = dict[str, Any]  # key below `cluster` (`actor.ranks`) -> value


@dataclass(frozen=True)
class Device:
    """A kind of GPU (or the machine, on CPU) and how many there are of it. bytes: the sum of its processes' peaks, even
    where phases take turns: a process does not give back to others what it once allocated."""

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
        """Tell whether every device holds what is on it. host_memory: bytes; None where it is not known."""
        room = {"gpu": gpu_memory, "host": inf if host_memory is None else host_memory}
        return all(device.bytes <= room[device.kind] for device in self.devices)


@dataclass(frozen=True)
class Suggestion:
    """Overrides under which a stage fits, and the GPUs that it then takes."""

    gpus: int
    overrides: list[str]


def layout(stage: PlannedStage) -> Layout:
    """Place a stage's processes on as many machines as needed and add up bytes. Raises UserError as `placed` does."""
    footprints: dict[str, Footprint] = {member.role: host_footprint(member, stage) for member in stage.hosted}
    if stage.engine is not None:
        footprints["rollout"] = engine_footprint(stage.engine, stage)
    if stage.device == "cpu":
        total = sum(footprints[member.role].peak * stage.processes(member.role) for member in stage.members)
        return Layout(footprints, [Device("host", 1, list(footprints), total)], 0)
    hosts = placed(stage)
    kinds = Counter(tuple(gpu) for host in hosts for gpu in host)
    devices = [
        Device("gpu", count, list(dict.fromkeys(roles)), sum(footprints[role].peak for role in roles))
        for roles, count in kinds.items()
    ]
    each = {role: LIBRARIES + sum(footprint.host.values()) for role, footprint in footprints.items()}
    most, fullest = max(((sum(each[role] for gpu in host for role in gpu), host) for host in hosts), key=itemgetter(0))
    roles = list(dict.fromkeys(role for gpu in fullest for role in gpu))
    return Layout(footprints, [*devices, Device("host", len(hosts), roles, most)], kinds.total())


def placed(stage: PlannedStage) -> list[list[list[str]]]:
    """List the roles of the processes on every GPU of every machine; `auto` separates them, because how many GPUs a
    cluster has is not known before it is up. Raises UserError for a placement that no cluster can give."""
    cluster, roles = stage.cluster, [member.role for member in stage.hosted if member.role != "rollout"]
    requests = resource_requests(cluster, roles, stage.engine is not None)
    machines = [Machine(f"host {name}", inf, inf) for name in range(sum(r.nodes or 1 for r in requests.values()))]
    placement = place(requests, "cuda", cluster.placement, machines)
    residents: dict[tuple[int | None, int], list[str]] = defaultdict(list)
    for role, slots in placement.slots.items():
        for slot in slots:
            residents[slot.group, slot.bundle].append(role)
    nodes = cluster.slurm or (cluster.kubernetes and cluster.kubernetes.worker)
    hosts, most = [], (nodes and nodes.gpus) or GPUS_PER_HOST
    for number, group in enumerate(placement.groups):
        gpus = list(_gpus([(residents[number, index], bundle["GPU"]) for index, bundle in enumerate(group.bundles)]))
        hosts += [gpus[start : start + most] for start in range(0, len(gpus), most)]
    return hosts


def _gpus(bundles: list[tuple[list[str], float]]) -> Iterator[list[str]]:
    """Yield the roles of every GPU: an engine's bundle spans several, and bundles of a part of a GPU share one."""
    for (roles, gpus), alike in groupby(bundles):
        number, each = len(list(alike)), max(1, int(1 / gpus)) if gpus else 1
        whole = [roles] * (number * ceil(gpus))
        yield from whole if gpus >= 1 else (roles * min(each, number - start) for start in range(0, number, each))


def suggestions(stage: PlannedStage, gpu_memory: int, host_memory: int | None) -> list[Suggestion]:
    """Find changes under which a stage fits: on as many GPUs as it has, the cheaper ones first, and on the fewest over
    which ZeRO-3 can divide every role. gpu_memory, host_memory: bytes of each (None: not known)."""

    def fits(changes: Changes) -> bool:
        try:
            return layout(_changed(stage, changes)).fits(gpu_memory, host_memory)
        except UserError:  # it cannot be placed
            return False

    def divided(gpus: int) -> Changes | None:
        return next(filter(fits, _divisions(stage, gpus)), None)

    found, changes, size = list[Suggestion](), Changes(), 1
    for change in _cheaper(stage):
        changes |= change
        if fits(changes):
            for key in reversed(list(changes)):  # the dearest first: what is not needed is left out again
                # An engine's workers and the GPUs of each change together.
                dropped = {"rollout.workers", "rollout.tensor_parallel"} if key.startswith("rollout.") else {key}
                without = {other: value for other, value in changes.items() if other not in dropped}
                changes = without if fits(without) else changes
            found.append(Suggestion(layout(_changed(stage, changes)).gpus, _overrides(stage, changes)))
            break
    while size <= LARGEST_CLUSTER and not divided(size):
        size *= 2
    for gpus in range(size // 2 + 1, min(size, LARGEST_CLUSTER) + 1):
        if fewest := divided(gpus):
            return [*found, Suggestion(gpus, _overrides(stage, fewest))]
    return found


def _cheaper(stage: PlannedStage) -> Iterator[Changes]:
    """Yield ZeRO-3; smaller token budgets, down to the longest sequence; engines over more GPUs each; offload."""
    roles, rollout = [member.role for member in stage.hosted], stage.cluster.rollout
    yield {f"{role}.zero_stage": 3 for role in roles}
    for key in ("train_tokens", "forward_tokens"):
        tokens = getattr(stage.cluster, key)
        while tokens // 2 >= stage.longest:
            tokens //= 2
            yield {key: tokens}
    # An engine that shares its GPU with models may have one only.
    shares = any("rollout" in gpu and len(set(gpu)) > 1 for host in placed(stage) for gpu in host)
    if stage.engine and not shares:
        workers, parallel = rollout.workers, rollout.tensor_parallel
        while workers % 2 == 0 and parallel < 8 and stage.engine.shape.heads % (2 * parallel) == 0:
            workers, parallel = workers // 2, parallel * 2
            yield {"rollout.workers": workers, "rollout.tensor_parallel": parallel}
    yield {f"{member.role}.offload": "optimizer" for member in stage.hosted if member.trained}
    yield {f"{role}.offload": "all" for role in roles}


def _divisions(stage: PlannedStage, gpus: int) -> Iterator[Changes]:
    """Yield ways to use this many GPUs: all for models and engines, or some for one engine alone."""
    roles, engine = [member.role for member in stage.hosted], stage.engine

    def divided(ranks: int, parallel: int, workers: int) -> Changes:
        models = {f"{role}.{key}": value for role in roles for key, value in (("ranks", ranks), ("zero_stage", 3))}
        return models | ({"rollout.tensor_parallel": parallel, "rollout.workers": workers} if engine else {})

    yield ({"placement": "colocate"} if len(stage.members) > 1 else {}) | divided(gpus, 1, gpus)
    for parallel in (size for size in (1, 2, 4, 8) if engine and engine.shape.heads % size == 0):
        if not roles and gpus % parallel == 0:
            yield divided(0, parallel, gpus // parallel)
        elif roles and gpus > parallel:
            yield {"placement": [roles, ["rollout"]]} | divided(gpus - parallel, parallel, 1)


def _changed(stage: PlannedStage, changes: Changes) -> PlannedStage:
    data = stage.cluster.model_dump()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (data[section] if section else data)[name] = value
    return replace(stage, cluster=ClusterSettings.model_validate(data))


def _overrides(stage: PlannedStage, changes: Changes) -> list[str]:
    """Write changes as overrides, without settings that stay as they are and without spaces, at which shells split."""
    new = {key: value for key, value in changes.items() if attrgetter(key)(stage.cluster) != value}
    return [f"cluster.{key}={value}".replace("'", "").replace(" ", "") for key, value in new.items()]
