"""Which process sits where: a pure plan of Ray bundles and seats, and the threads each process may use."""

from dataclasses import dataclass
from typing import Any

from quadriga.data.errors import UserError


@dataclass(frozen=True)
class Seat:
    """Where one process goes: a bundle of the placement group (None: anywhere) and its share of a GPU."""

    bundle: int | None
    gpus: float


@dataclass(frozen=True)
class Placement:
    """Bundles to reserve, packed on few nodes, and a seat for every rank of every role."""

    bundles: list[dict[str, float]]
    seats: dict[str, list[Seat]]


def place(wanted: dict[str, tuple[int, float]], device: str, mode: str, cpus: int, gpus: float) -> Placement:
    """Seat every process.

    wanted: role -> (processes, GPUs of each). On CPU nothing is reserved (processes take turns on the cores); on CUDA
    `separate` gives every process its own GPUs, `colocate` lets rank i of every role share bundle i, and `auto`
    separates when the cluster has enough.

    Raises UserError, before anything starts, when the cluster cannot hold them.
    """
    if device == "cpu":
        for role, (count, _) in wanted.items():
            if count > cpus:
                raise UserError(
                    f"cluster.{role} asks for {count} processes, but there are {cpus} CPU cores; more ranks than cores "
                    f"only wait for each other. Lower cluster.{role}.{'workers' if role == 'rollout' else 'ranks'}."
                )
        return Placement([], {role: [Seat(None, 0.0)] * count for role, (count, _) in wanted.items()})
    total = sum(count * share for count, share in wanted.values())
    if mode == "separate" or (mode == "auto" and total <= gpus):
        if total > gpus:
            raise UserError(f"the roles ask for {total:g} GPUs and the cluster has {gpus:g}. Use placement: colocate.")
        return _separate(wanted)
    widest = max(count for count, _ in wanted.values())
    if widest > gpus:
        raise UserError(f"one role asks for {widest} GPUs and the cluster has {gpus:g}. Lower its ranks.")
    return _colocate(wanted, widest)


def _separate(wanted: dict[str, tuple[int, float]]) -> Placement:
    bundles: list[dict[str, float]] = []
    seats: dict[str, list[Seat]] = {}
    for role, (count, share) in wanted.items():
        seats[role] = []
        for _ in range(count):
            seats[role].append(Seat(len(bundles), share))
            bundles.append({"GPU": share, "CPU": 1})
    return Placement(bundles, seats)


def _colocate(wanted: dict[str, tuple[int, float]], widest: int) -> Placement:
    members = [sum(1 for count, _ in wanted.values() if bundle < count) for bundle in range(widest)]
    seats = {
        role: [Seat(bundle, round(1.0 / members[bundle] - 5e-4, 3)) for bundle in range(count)]
        for role, (count, _) in wanted.items()
    }
    return Placement([{"GPU": 1, "CPU": members[bundle]} for bundle in range(widest)], seats)


def options(placement: Placement, group: Any, role: str, rank: int) -> dict[str, Any]:
    """Ray actor options of one process. `group` is the Ray placement group of the plan (None on CPU)."""
    seat = placement.seats[role][rank]
    if group is None or seat.bundle is None:
        return {"num_cpus": 0, "num_gpus": 0}
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=seat.bundle)
    return {"num_cpus": 1, "num_gpus": seat.gpus, "scheduling_strategy": strategy}


def threads(setting: int | None, cpus: int, at_once: int) -> int:
    """CPU threads of a process: as set, or the cores divided by what runs at the same time."""
    return setting if setting is not None else max(1, cpus // max(1, at_once))
