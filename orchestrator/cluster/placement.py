"""Which process runs where: a pure plan of placement groups on the cluster's machines, and a slot for every process."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from quadriga.actors.settings import ClusterSettings, PlacedRole, Role
from quadriga.data.errors import UserError

Mode = str | Sequence[Sequence[PlacedRole]]


@dataclass(frozen=True)
class Machine:
    """A node of the cluster: its address, and what it has in all."""

    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class ResourceRequest:
    """Processes of a role, GPUs per process, and over how many machines they are spread (None: it does not matter)."""

    count: int
    gpus: float
    nodes: int | None = None


@dataclass(frozen=True)
class Slot:
    """Where one process goes: a bundle of a placement group (None: anywhere) and its share of a GPU."""

    group: int | None
    bundle: int
    gpus: float


@dataclass(frozen=True)
class PlacementGroupSpec:
    """Bundles that are reserved together. machine: the address they must be on; None: packed on few machines."""

    bundles: list[dict[str, float]]
    machine: str | None


@dataclass(frozen=True)
class Placement:
    """Placement groups to reserve, and a slot for every process of every role."""

    groups: list[PlacementGroupSpec] = field(default_factory=list)
    slots: dict[str, list[Slot]] = field(default_factory=dict)


ANYWHERE = Slot(None, 0, 0.0)


def resource_requests(settings: ClusterSettings, roles: Sequence[Role], generates: bool) -> dict[str, ResourceRequest]:
    """What a stage with these models requests of the cluster, in the roles' order."""
    hosts = {role: settings.model_worker(role) for role in roles}
    requests: dict[str, ResourceRequest] = {
        role: ResourceRequest(host.ranks, host.gpus, host.nodes) for role, host in hosts.items()
    }
    if generates:
        rollout = settings.rollout
        requests["rollout"] = ResourceRequest(rollout.workers, rollout.gpus * rollout.tensor_parallel, rollout.nodes)
    return requests


def place(requests: Mapping[str, ResourceRequest], device: str, mode: Mode, machines: Sequence[Machine]) -> Placement:
    """Give every process a slot.

    mode: `separate` gives every process GPUs of its own, `colocate` lets rank i of every role share one, `auto`
    separates where there are enough, and lists of roles share within a list. Where a role says on how many `nodes` it
    is, its list has machines of its own, taken in the order of `machines`; its other roles are there too. On CPU
    nothing is reserved for the others: processes take turns on the cores.

    Raises UserError, before anything starts, when the cluster cannot hold them.
    """
    lists = _lists(requests, device, mode, machines)
    groups: list[PlacementGroupSpec] = []
    slots: dict[str, list[Slot]] = {}
    free = list(machines)
    loose: list[list[str]] = []
    for roles in lists:
        nodes = _nodes(roles, requests)
        if nodes is None:
            loose.append(roles)
            continue
        ranks = [_on_node(roles, requests, number, nodes) for number in range(nodes)]
        shares = [_share(roles, requests, {role: len(own) for role, own in local.items()}, device) for local in ranks]
        chosen = _choose(roles, requests, shares, ranks, free, machines, device)
        for machine, local, (bundles, share) in zip(chosen, ranks, shares, strict=True):
            free.remove(machine)
            for role, own in local.items():
                slots.setdefault(role, []).extend(
                    Slot(len(groups), bundle, gpus) for (bundle, gpus), _ in zip(share[role], own, strict=True)
                )
            groups.append(PlacementGroupSpec(bundles, machine.address))
    if loose and device == "cpu":
        slots |= _unreserved({role: requests[role] for roles in loose for role in roles}, sum(m.cpus for m in machines))
    elif loose:
        _reserve_anywhere(loose, requests, sum(m.gpus for m in free), groups, slots)
    return Placement(groups, slots)


def max_processes_per_node(placement: Placement, roles: Sequence[str], machines: Sequence[Machine]) -> int:
    """Most processes of these roles on one machine, as far as the plan knows.

    A placement group that may be anywhere is taken to fill the largest machines evenly; without GPUs all of it may be
    on one.
    """
    largest = max(machine.gpus for machine in machines)
    sitting = Counter(slot.group for role in roles for slot in placement.slots.get(role, []))
    counts = Counter[str | None]()
    for number, processes in sitting.items():
        group = PlacementGroupSpec([], None) if number is None else placement.groups[number]
        gpus = sum(bundle.get("GPU", 0.0) for bundle in group.bundles)
        part = largest / gpus if group.machine is None and gpus > largest else 1.0
        counts[group.machine] += ceil(round(processes * part, 6))
    return max(counts.values(), default=0)


def fewest_cores(machines: Sequence[Machine]) -> int:
    """Of a machine that takes processes: a head with `num-cpus: 0` says nothing of the others."""
    return int(min((machine.cpus for machine in machines if machine.cpus), default=1))


def threads(setting: int | None, cpus: int, at_once: int) -> int:
    """CPU threads of a process: as set, or the cores divided by what runs at the same time."""
    return setting if setting is not None else max(1, cpus // max(1, at_once))


def _lists(
    requests: Mapping[str, ResourceRequest], device: str, mode: Mode, machines: Sequence[Machine]
) -> list[list[str]]:
    """The roles that share with each other."""
    if not isinstance(mode, str):
        named: list[str] = [role for roles in mode for role in roles]
        if twice := [role for role in named if named.count(role) > 1]:
            raise UserError(f"cluster.placement names {twice[0]} twice: a role shares with one list of roles only.")
        lists: list[list[str]] = [[role for role in roles if role in requests] for roles in mode]
        return [roles for roles in lists if roles] + [[role] for role in requests if role not in named]
    total = sum(request.count * request.gpus for request in requests.values())
    gpus = sum(machine.gpus for machine in machines)
    if mode == "separate" and total > gpus and device == "cuda":
        raise UserError(f"the roles ask for {total:g} GPUs and the cluster has {gpus:g}. Use placement: colocate.")
    apart = mode == "separate" or (mode == "auto" and (device == "cpu" or total <= gpus))
    return [[role] for role in requests] if apart else [list(requests)]


def _nodes(roles: Sequence[str], requests: Mapping[str, ResourceRequest]) -> int | None:
    """On how many machines the roles of a list are."""
    given = {role: nodes for role in roles if (nodes := requests[role].nodes) is not None}
    if len(set(given.values())) > 1:
        said = " and ".join(f"cluster.{role}.nodes is {nodes}" for role, nodes in given.items())
        raise UserError(f"{said}, but they share their nodes (cluster.placement): give the same number.")
    nodes = next(iter(given.values()), None)
    for role in given:
        if nodes and requests[role].count % nodes:
            raise UserError(
                f"cluster.{role} has {requests[role].count} processes, which cannot be spread evenly over "
                f"{nodes} nodes. Give a multiple of {nodes}, or other `nodes`."
            )
    return nodes


def _on_node(
    roles: Sequence[str], requests: Mapping[str, ResourceRequest], number: int, nodes: int
) -> dict[str, list[int]]:
    """The ranks of each role on the n-th of the machines: neighbours together."""
    return {
        role: [rank for rank in range(requests[role].count) if rank * nodes // requests[role].count == number]
        for role in roles
    }


Share = dict[str, list[tuple[int, float]]]
"""Role -> (bundle, GPU share) of each of its processes on a machine."""


def _share(
    roles: Sequence[str], requests: Mapping[str, ResourceRequest], counts: Mapping[str, int], device: str
) -> tuple[list[dict[str, float]], Share]:
    """Bundles for so many processes of each role, and which process gets which."""
    if device == "cpu":
        return [{}], {role: [(0, 0.0)] * counts[role] for role in roles}
    if len(roles) == 1:
        (role,) = roles
        gpus = requests[role].gpus
        return [{"GPU": gpus, "CPU": 1.0}] * counts[role], {role: [(i, gpus) for i in range(counts[role])]}
    if wide := [role for role in roles if requests[role].gpus > 1]:
        raise UserError(
            f"A process of {wide[0]} takes {requests[wide[0]].gpus:g} GPUs and so cannot share one with another role. "
            "Use placement: separate, or a list of lists that has it alone."
        )
    widest = max(counts.values())
    members = [sum(count > bundle for count in counts.values()) for bundle in range(widest)]
    bundles = [{"GPU": 1.0, "CPU": float(count)} for count in members]
    return bundles, {role: [(i, round(1.0 / members[i] - 5e-4, 3)) for i in range(counts[role])] for role in roles}


def _choose(
    roles: Sequence[str],
    requests: Mapping[str, ResourceRequest],
    shares: Sequence[tuple[list[dict[str, float]], Share]],
    ranks: Sequence[dict[str, list[int]]],
    free: Sequence[Machine],
    machines: Sequence[Machine],
    device: str,
) -> list[Machine]:
    """A machine for each share, the first that has room."""
    chosen: list[Machine] = []
    for (bundles, _), local in zip(shares, ranks, strict=True):
        gpus = sum(bundle.get("GPU", 0.0) for bundle in bundles)
        cpus = max(len(own) for own in local.values())  # of a role: roles take turns, its ranks do not
        room = [m for m in free if m not in chosen and m.gpus >= gpus and (device != "cpu" or m.cpus >= cpus)]
        if not room:
            need = _several(gpus, "GPU") if device == "cuda" else _several(cpus, "CPU core")
            left = ", ".join(f"{m.address} ({_several(m.gpus, 'GPU')}, {_several(m.cpus, 'core')})" for m in free)
            raise UserError(
                f"{', '.join(roles)}: {_several(len(shares), 'machine')} of {'its' if len(roles) == 1 else 'their'} "
                f"own with {need} each, and {left or 'none'} of {_several(len(machines), 'machine')} left. Lower "
                "`nodes`, or add machines."
            )
        chosen.append(room[0])
    return chosen


def _several(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _unreserved(requests: Mapping[str, ResourceRequest], cpus: float) -> dict[str, list[Slot]]:
    for role, request in requests.items():
        if request.count > cpus:
            raise UserError(
                f"cluster.{role} asks for {request.count} processes, but there are {cpus:g} CPU cores; more ranks than "
                f"cores only wait for each other. Lower cluster.{role}.{'workers' if role == 'rollout' else 'ranks'}."
            )
    return {role: [ANYWHERE] * request.count for role, request in requests.items()}


def _reserve_anywhere(
    lists: Sequence[Sequence[str]],
    requests: Mapping[str, ResourceRequest],
    gpus: float,
    groups: list[PlacementGroupSpec],
    slots: dict[str, list[Slot]],
) -> None:
    """Add one placement group on GPUs wherever they are."""
    bundles: list[dict[str, float]] = []
    for roles in lists:
        own, share = _share(roles, requests, {role: requests[role].count for role in roles}, "cuda")
        for role in roles:
            slots[role] = [Slot(len(groups), len(bundles) + bundle, part) for bundle, part in share[role]]
        bundles += own
    total = sum(bundle["GPU"] for bundle in bundles)
    if total > gpus:
        widest = max((role for roles in lists for role in roles), key=lambda role: requests[role].count)
        raise UserError(
            f"{total:g} GPUs are needed and the cluster has {gpus:g}. Lower cluster.{widest}."
            f"{'workers' if widest == 'rollout' else 'ranks'}, or use placement: colocate."
        )
    groups.append(PlacementGroupSpec(bundles, None))
