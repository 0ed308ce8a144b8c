"""Which process sits where: a pure plan of berths on the cluster's machines, a seat in one for every process."""

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
class Wish:
    """Processes of a role, GPUs of each, and over how many machines they are spread (None: it does not matter)."""

    count: int
    gpus: float
    nodes: int | None = None


@dataclass(frozen=True)
class Seat:
    """Where one process goes: a bundle of a berth (None: anywhere) and its share of a GPU."""

    berth: int | None
    bundle: int
    gpus: float


@dataclass(frozen=True)
class Berth:
    """Bundles that are reserved together. machine: the address they must be on; None: packed on few machines."""

    bundles: list[dict[str, float]]
    machine: str | None


@dataclass(frozen=True)
class Placement:
    """Berths to reserve, and a seat for every process of every role."""

    berths: list[Berth] = field(default_factory=list)
    seats: dict[str, list[Seat]] = field(default_factory=dict)


ANYWHERE = Seat(None, 0, 0.0)


def wishes_of(settings: ClusterSettings, roles: Sequence[Role], generates: bool) -> dict[str, Wish]:
    """What a stage with these models wants of the cluster, in the roles' order."""
    hosts = {role: settings.model_worker(role) for role in roles}
    wishes: dict[str, Wish] = {role: Wish(host.ranks, host.gpus, host.nodes) for role, host in hosts.items()}
    if generates:
        rollout = settings.rollout
        wishes["rollout"] = Wish(rollout.workers, rollout.gpus * rollout.tensor_parallel, rollout.nodes)
    return wishes


def place(wishes: Mapping[str, Wish], device: str, mode: Mode, machines: Sequence[Machine]) -> Placement:
    """Seat every process.

    mode: `separate` gives every process GPUs of its own, `colocate` lets rank i of every role share one, `auto`
    separates where there are enough, and lists of roles share within a list. Where a role says on how many `nodes` it
    is, its list has machines of its own, taken in the order of `machines`; its other roles are there too. On CPU
    nothing is reserved for the others: processes take turns on the cores.

    Raises UserError, before anything starts, when the cluster cannot hold them.
    """
    lists = _lists(wishes, device, mode, machines)
    berths: list[Berth] = []
    seats: dict[str, list[Seat]] = {}
    free = list(machines)
    loose: list[list[str]] = []
    for roles in lists:
        nodes = _nodes(roles, wishes)
        if nodes is None:
            loose.append(roles)
            continue
        ranks = [_on_node(roles, wishes, number, nodes) for number in range(nodes)]
        shares = [_share(roles, wishes, {role: len(own) for role, own in local.items()}, device) for local in ranks]
        chosen = _choose(roles, wishes, shares, ranks, free, machines, device)
        for machine, local, (bundles, share) in zip(chosen, ranks, shares, strict=True):
            free.remove(machine)
            for role, own in local.items():
                seats.setdefault(role, []).extend(
                    Seat(len(berths), bundle, gpus) for (bundle, gpus), _ in zip(share[role], own, strict=True)
                )
            berths.append(Berth(bundles, machine.address))
    if loose and device == "cpu":
        seats |= _unreserved({role: wishes[role] for roles in loose for role in roles}, sum(m.cpus for m in machines))
    elif loose:
        _reserve_anywhere(loose, wishes, sum(m.gpus for m in free), berths, seats)
    return Placement(berths, seats)


def crowd(placement: Placement, roles: Sequence[str], machines: Sequence[Machine]) -> int:
    """Most processes of these roles that sit on one machine, as far as the plan knows.

    A berth that may be anywhere is taken to fill the largest machines evenly; without GPUs all of it may be on one.
    """
    largest = max(machine.gpus for machine in machines)
    sitting = Counter(seat.berth for role in roles for seat in placement.seats.get(role, []))
    counts = Counter[str | None]()
    for number, processes in sitting.items():
        berth = Berth([], None) if number is None else placement.berths[number]
        gpus = sum(bundle.get("GPU", 0.0) for bundle in berth.bundles)
        part = largest / gpus if berth.machine is None and gpus > largest else 1.0
        counts[berth.machine] += ceil(round(processes * part, 6))
    return max(counts.values(), default=0)


def fewest_cores(machines: Sequence[Machine]) -> int:
    """Of a machine that takes processes: a head with `num-cpus: 0` says nothing of the others."""
    return int(min((machine.cpus for machine in machines if machine.cpus), default=1))


def threads(setting: int | None, cpus: int, at_once: int) -> int:
    """CPU threads of a process: as set, or the cores divided by what runs at the same time."""
    return setting if setting is not None else max(1, cpus // max(1, at_once))


def _lists(wishes: Mapping[str, Wish], device: str, mode: Mode, machines: Sequence[Machine]) -> list[list[str]]:
    """The roles that share with each other."""
    if not isinstance(mode, str):
        named: list[str] = [role for roles in mode for role in roles]
        if twice := [role for role in named if named.count(role) > 1]:
            raise UserError(f"cluster.placement names {twice[0]} twice: a role shares with one list of roles only.")
        lists: list[list[str]] = [[role for role in roles if role in wishes] for roles in mode]
        return [roles for roles in lists if roles] + [[role] for role in wishes if role not in named]
    total = sum(wish.count * wish.gpus for wish in wishes.values())
    gpus = sum(machine.gpus for machine in machines)
    if mode == "separate" and total > gpus and device == "cuda":
        raise UserError(f"the roles ask for {total:g} GPUs and the cluster has {gpus:g}. Use placement: colocate.")
    apart = mode == "separate" or (mode == "auto" and (device == "cpu" or total <= gpus))
    return [[role] for role in wishes] if apart else [list(wishes)]


def _nodes(roles: Sequence[str], wishes: Mapping[str, Wish]) -> int | None:
    """On how many machines the roles of a list are."""
    given = {role: nodes for role in roles if (nodes := wishes[role].nodes) is not None}
    if len(set(given.values())) > 1:
        said = " and ".join(f"cluster.{role}.nodes is {nodes}" for role, nodes in given.items())
        raise UserError(f"{said}, but they share their nodes (cluster.placement): give the same number.")
    nodes = next(iter(given.values()), None)
    for role in given:
        if nodes and wishes[role].count % nodes:
            raise UserError(
                f"cluster.{role} has {wishes[role].count} processes, which cannot be spread evenly over "
                f"{nodes} nodes. Give a multiple of {nodes}, or other `nodes`."
            )
    return nodes


def _on_node(roles: Sequence[str], wishes: Mapping[str, Wish], number: int, nodes: int) -> dict[str, list[int]]:
    """The ranks of each role on the n-th of the machines: neighbours together."""
    return {
        role: [rank for rank in range(wishes[role].count) if rank * nodes // wishes[role].count == number]
        for role in roles
    }


Share = dict[str, list[tuple[int, float]]]
"""Role -> (bundle, GPU share) of each of its processes on a machine."""


def _share(
    roles: Sequence[str], wishes: Mapping[str, Wish], counts: Mapping[str, int], device: str
) -> tuple[list[dict[str, float]], Share]:
    """Bundles for so many processes of each role, and who sits in which."""
    if device == "cpu":
        return [{}], {role: [(0, 0.0)] * counts[role] for role in roles}
    if len(roles) == 1:
        (role,) = roles
        gpus = wishes[role].gpus
        return [{"GPU": gpus, "CPU": 1.0}] * counts[role], {role: [(i, gpus) for i in range(counts[role])]}
    if wide := [role for role in roles if wishes[role].gpus > 1]:
        raise UserError(
            f"A process of {wide[0]} takes {wishes[wide[0]].gpus:g} GPUs and so cannot share one with another role. "
            "Use placement: separate, or a list of lists that has it alone."
        )
    widest = max(counts.values())
    members = [sum(count > bundle for count in counts.values()) for bundle in range(widest)]
    bundles = [{"GPU": 1.0, "CPU": float(count)} for count in members]
    return bundles, {role: [(i, round(1.0 / members[i] - 5e-4, 3)) for i in range(counts[role])] for role in roles}


def _choose(
    roles: Sequence[str],
    wishes: Mapping[str, Wish],
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


def _unreserved(wishes: Mapping[str, Wish], cpus: float) -> dict[str, list[Seat]]:
    for role, wish in wishes.items():
        if wish.count > cpus:
            raise UserError(
                f"cluster.{role} asks for {wish.count} processes, but there are {cpus:g} CPU cores; more ranks than "
                f"cores only wait for each other. Lower cluster.{role}.{'workers' if role == 'rollout' else 'ranks'}."
            )
    return {role: [ANYWHERE] * wish.count for role, wish in wishes.items()}


def _reserve_anywhere(
    lists: Sequence[Sequence[str]],
    wishes: Mapping[str, Wish],
    gpus: float,
    berths: list[Berth],
    seats: dict[str, list[Seat]],
) -> None:
    """One berth on GPUs wherever they are."""
    bundles: list[dict[str, float]] = []
    for roles in lists:
        own, share = _share(roles, wishes, {role: wishes[role].count for role in roles}, "cuda")
        for role in roles:
            seats[role] = [Seat(len(berths), len(bundles) + bundle, part) for bundle, part in share[role]]
        bundles += own
    total = sum(bundle["GPU"] for bundle in bundles)
    if total > gpus:
        widest = max((role for roles in lists for role in roles), key=lambda role: wishes[role].count)
        raise UserError(
            f"{total:g} GPUs are needed and the cluster has {gpus:g}. Lower cluster.{widest}."
            f"{'workers' if widest == 'rollout' else 'ranks'}, or use placement: colocate."
        )
    berths.append(Berth(bundles, None))
