"""Reservations: Ray placement groups for a placement, reserved again on another machine if theirs is lost."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from quadriga.actors.runtime.remote_calls import wait_all
from quadriga.data.errors import Fault
from quadriga.orchestrator.cluster.placement import Machine, Placement, PlacementGroupSpec

NODE_ANSWER_SECONDS = 3.0
"""How long a node may take to accept a connection before it counts as lost."""


def machines() -> list[Machine]:
    """Return the cluster's living nodes, the driver's first, then by address."""
    import ray

    own = ray.util.get_node_ip_address()
    nodes = [
        Machine(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda m: (m.address != own, [part.zfill(3) for part in m.address.split(".")]))


def reachable() -> set[str]:
    """Return the addresses of the nodes that answer now: Ray takes up to a minute to notice a cut cable."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as threads:
        answers = threads.map(lambda n: _answers(n["NodeManagerAddress"], n["NodeManagerPort"]), nodes)
        return {node["NodeManagerAddress"] for node, up in zip(nodes, answers, strict=True) if up}


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=NODE_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


class Reservations:
    """The Ray placement groups of a placement.

    limit: seconds to wait for resources, or for a machine that replaces a lost one. note: records events
    (`RunDir.note`).
    """

    def __init__(self, placement: Placement, limit: float, note: Callable[..., None] = lambda event, **fields: None):
        self._specs, self._slots, self._limit, self._note = list(placement.groups), placement.slots, limit, note
        self._groups: list[Any] = []
        self._more: dict[tuple[str, int], Any] = {}
        """(role, number) -> placement group of a process beyond the plan."""

    def reserve(self) -> None:
        """Reserve all groups. Raises Lost if the resources are not free in time."""
        self._groups = [_group(spec) for spec in self._specs]
        pairs = zip(self._specs, self._groups, strict=True)
        waits = {f"reservation on {spec.machine or 'GPUs'}": group.ready() for spec, group in pairs}
        if waits:
            wait_all(waits, "start", self._limit)

    def options(self, role: str, number: int) -> dict[str, Any]:
        """Return the Ray actor options of a process; one beyond the plan goes where the others of its role are."""
        slots = self._slots[role]
        slot = slots[number % len(slots)]
        if slot.group is None:
            return {"num_cpus": 0, "num_gpus": 0}
        group, bundle = self._groups[slot.group], slot.bundle
        if number >= len(slots) and slot.gpus:
            group = self._more.get((role, number)) or _group(PlacementGroupSpec([{"GPU": slot.gpus, "CPU": 1.0}], None))
            self._more[role, number] = group
            bundle = 0
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return {"num_cpus": 1 if slot.gpus else 0, "num_gpus": slot.gpus, "scheduling_strategy": strategy}

    def release(self, role: str, number: int) -> None:
        """Remove the placement group of a process beyond the plan."""
        import ray

        if (group := self._more.pop((role, number), None)) is not None:
            ray.util.remove_placement_group(group)

    def replace_lost_nodes(self, role: str, wait: bool) -> None:
        """Move the role's placement groups from lost machines to others.

        wait: if no machine is free, wait for one to join; otherwise the group may go to any machine, now or later.
        Raises Fault, naming the lost machine, if none joins in time.
        """
        if not any(self._specs[slot.group].machine for slot in self._slots[role] if slot.group is not None):
            return
        alive = reachable()
        for number in sorted({slot.group for slot in self._slots[role] if slot.group is not None}):
            spec = self._specs[number]
            if spec.machine is None or spec.machine in alive:
                continue
            self._replace(number, self._spare(spec, wait))
            self._note("node_lost", node=spec.machine, replaced_by=self._specs[number].machine)

    def close(self) -> None:
        """Remove all placement groups."""
        import ray

        for group in [*self._groups, *self._more.values()]:
            ray.util.remove_placement_group(group)

    def _spare(self, spec: PlacementGroupSpec, wait: bool) -> str | None:
        """Return the address of an unused living machine with room for the bundles; without `wait` perhaps None."""
        deadline = time.monotonic() + self._limit
        gpus = sum(bundle.get("GPU", 0.0) for bundle in spec.bundles)
        while True:
            taken = {other.machine for other in self._specs}
            spare = [machine for machine in machines() if machine.address not in taken and machine.gpus >= gpus]
            answering = reachable() if spare else set()
            if room := [machine.address for machine in spare if machine.address in answering]:
                return room[0]
            if not wait:
                return None
            if time.monotonic() > deadline:
                raise Fault(
                    f"the machine {spec.machine} is lost, and none joined the cluster in its place within "
                    f"{self._limit:.0f} s (cluster.deadlines.start)",
                    phase="recovery",
                    process=spec.machine or "",
                )
            time.sleep(0.5)

    def _replace(self, number: int, machine: str | None) -> None:
        import ray

        ray.util.remove_placement_group(self._groups[number])
        self._specs[number] = replace(self._specs[number], machine=machine)
        self._groups[number] = _group(self._specs[number])


def _group(spec: PlacementGroupSpec) -> Any:
    """Create a placement group; a sliver of the resource `node:ADDRESS`, which one node has, pins a bundle to it."""
    import ray

    pin = {f"node:{spec.machine}": 0.001} if spec.machine else {}
    bundles = [bundle | pin or {"CPU": 0.001} for bundle in spec.bundles]
    return ray.util.placement_group(bundles, strategy="PACK")
