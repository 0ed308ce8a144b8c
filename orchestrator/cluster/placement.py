"""Placement: a pure plan of placement groups on the cluster's machines, with a slot for every process."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from quadriga.actors.settings import ClusterSettings, PlacedRole, Role
from quadriga.data.errors import UserError

Mode = str | Sequence[Sequence[PlacedRole]]


@dataclass(frozen=True)
class Machine:
    """A node of the cluster: its address, and its total CPUs and GPUs."""

    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class ResourceRequest:
    """The processes of a role: their number, GPUs per process, and the number of machines (None: any number)."""

    count: int
    gpus: float
    nodes: int | None = None


@dataclass(frozen=True)
class Slot:
    """Where one process runs: a bundle of a placement group (None: anywhere) and its share of a GPU."""

    group: int | None
    bundle: int
    gpus: float


@dataclass(frozen=True)
class PlacementGroupSpec:
    """Bundles that are reserved together, on `machine` (an address) or, if it is None, packed on few machines."""

    bundles: list[dict[str, float]]
    machine: str | None


@dataclass(frozen=True)
class Placement:
    """The placement groups to reserve, and a slot for every process: role -> slots in the order of ranks."""

    groups: list[PlacementGroupSpec] = field(default_factory=list)
    slots: dict[str, list[Slot]] = field(default_factory=dict)


ANYWHERE = Slot(None, 0, 0.0)


def resource_requests(settings: ClusterSettings, roles: Sequence[Role], generates: bool) -> dict[str, ResourceRequest]:
    """Return the request of every role, in the order of `roles`; with `generates` also that of the rollout workers."""
    workers = {role: settings.model_worker(role) for role in roles}
    requests: dict[str, ResourceRequest] = {
        role: ResourceRequest(worker.ranks, worker.gpus, worker.nodes) for role, worker in workers.items()
    }
    if generates:
        rollout = settings.rollout
        requests["rollout"] = ResourceRequest(rollout.workers, rollout.gpus * rollout.tensor_parallel, rollout.nodes)
    return requests


def place(requests: Mapping[str, ResourceRequest], device: str, mode: Mode, machines: Sequence[Machine]) -> Placement:
    """Give every process a slot.

    mode: `separate` gives every process exclusive GPUs, `colocate` lets rank i of every role share one, `auto`
    separates if there are enough GPUs; with lists of roles, the roles of a list share. If a role sets `nodes`, its
    whole list gets that many exclusive machines, taken in the order of `machines`. On CPU the remaining lists reserve
    nothing: their processes take turns on the cores.

    Raises UserError, before anything starts, if the cluster cannot hold the processes.
    """
    lists = _sharing_lists(requests, device, mode, machines)
    groups: list[PlacementGroupSpec] = []
    slots: dict[str, list[Slot]] = {}
    free = list(machines)
    unpinned: list[list[str]] = []
    for roles in lists:
        nodes = _nodes(roles, requests)
        if nodes is None:
            unpinned.append(roles)
            continue
        ranks = [_ranks_on_node(roles, requests, number, nodes) for number in range(nodes)]
        shares = [_share(roles, requests, {role: len(own) for role, own in local.items()}, device) for local in ranks]
        chosen = _choose(roles, requests, shares, ranks, free, machines, device)
        for machine, local, (bundles, share) in zip(chosen, ranks, shares, strict=True):
            free.remove(machine)
            for role, own in local.items():
                slots.setdefault(role, []).extend(
                    Slot(len(groups), bundle, gpus) for (bundle, gpus), _ in zip(share[role], own, strict=True)
                )
            groups.append(PlacementGroupSpec(bundles, machine.address))
    if unpinned and device == "cpu":
        cpus = sum(machine.cpus for machine in machines)
        slots |= _unreserved({role: requests[role] for roles in unpinned for role in roles}, cpus)
    elif unpinned:
        _reserve_anywhere(unpinned, requests, sum(m.gpus for m in free), groups, slots)
    return Placement(groups, slots)


def max_processes_per_node(placement: Placement, roles: Sequence[str], machines: Sequence[Machine]) -> int:
    """Return the most processes of these roles on one machine, as far as the plan knows.

    A placement group without a machine is assumed to fill the largest machines evenly, and one without GPUs to be on a
    single machine.
    """
    largest = max(machine.gpus for machine in machines)
    processes_in = Counter(slot.group for role in roles for slot in placement.slots.get(role, []))
    counts = Counter[str | None]()
    for number, processes in processes_in.items():
        group = PlacementGroupSpec([], None) if number is None else placement.groups[number]
        gpus = sum(bundle.get("GPU", 0.0) for bundle in group.bundles)
        part = largest / gpus if group.machine is None and gpus > largest else 1.0
        counts[group.machine] += ceil(round(processes * part, 6))
    return max(counts.values(), default=0)


def fewest_cores(machines: Sequence[Machine]) -> int:
    """Return the fewest cores of a machine that has any: a head node with `num-cpus: 0` takes no processes."""
    return int(min((machine.cpus for machine in machines if machine.cpus), default=1))


def threads(setting: int | None, cpus: int, at_once: int) -> int:
    """Return the CPU threads of a process: the setting, else the cores divided by the processes that run at once."""
    return setting if setting is not None else max(1, cpus // max(1, at_once))


def _sharing_lists(
    requests: Mapping[str, ResourceRequest], device: str, mode: Mode, machines: Sequence[Machine]
) -> list[list[str]]:
    """Return lists of the roles that share machines or GPUs."""
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
    """Return the number of machines for the roles of a list; None if no role sets it."""
    given = {role: nodes for role in roles if (nodes := requests[role].nodes) is not None}
    if len(set(given.values())) > 1:
        listed = " and ".join(f"cluster.{role}.nodes is {nodes}" for role, nodes in given.items())
        raise UserError(f"{listed}, but they share their nodes (cluster.placement): give the same number.")
    nodes = next(iter(given.values()), None)
    for role in given:
        if nodes and requests[role].count % nodes:
            raise UserError(
                f"cluster.{role} has {requests[role].count} processes, which cannot be spread evenly over "
                f"{nodes} nodes. Give a multiple of {nodes}, or other `nodes`."
            )
    return nodes


def _ranks_on_node(
    roles: Sequence[str], requests: Mapping[str, ResourceRequest], number: int, nodes: int
) -> dict[str, list[int]]:
    """Return role -> its ranks on the machine with this number; neighbouring ranks are together."""
    return {
        role: [rank for rank in range(requests[role].count) if rank * nodes // requests[role].count == number]
        for role in roles
    }


Share = dict[str, list[tuple[int, float]]]
"""Role -> (bundle, share of a GPU) of each of its processes on a machine."""


def _share(
    roles: Sequence[str], requests: Mapping[str, ResourceRequest], counts: Mapping[str, int], device: str
) -> tuple[list[dict[str, float]], Share]:
    """Return bundles for these counts of processes (by role), and the bundle of each process."""
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
    """Return a machine for each share, the first with enough room. Raises UserError if there is none."""
    chosen: list[Machine] = []
    for (bundles, _), local in zip(shares, ranks, strict=True):
        gpus = sum(bundle.get("GPU", 0.0) for bundle in bundles)
        cpus = max(len(own) for own in local.values())  # a maximum: roles take turns, the ranks of a role do not
        room = [m for m in free if m not in chosen and m.gpus >= gpus and (device != "cpu" or m.cpus >= cpus)]
        if not room:
            need = _counted(gpus, "GPU") if device == "cuda" else _counted(cpus, "CPU core")
            left = ", ".join(f"{m.address} ({_counted(m.gpus, 'GPU')}, {_counted(m.cpus, 'core')})" for m in free)
            raise UserError(
                f"{', '.join(roles)}: {_counted(len(shares), 'machine')} of {'its' if len(roles) == 1 else 'their'} "
                f"own with {need} each required, free: {left or 'none'} of {_counted(len(machines), 'machine')}. Lower "
                "`nodes`, or add machines."
            )
        chosen.append(room[0])
    return chosen


def _counted(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _unreserved(requests: Mapping[str, ResourceRequest], cpus: float) -> dict[str, list[Slot]]:
    """Return slots anywhere, role by role. Raises UserError if a role has more processes than there are cores."""
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
    """Add one placement group, with slots in it, on GPUs of any machine. Raises UserError if there are too few."""
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
