"""Placement as a pure plan: no process is placed without room for it."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.errors import UserError
from quadriga.orchestrator.cluster.placement import (
    Machine,
    Placement,
    ResourceRequest,
    fewest_cores,
    max_processes_per_node,
    place,
    threads,
)

ROLES = ["actor", "critic", "reference", "reward", "rollout"]
requests = st.dictionaries(
    st.sampled_from(ROLES),
    st.builds(
        ResourceRequest, st.integers(1, 8), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([None, None, 1, 2, 3])
    ),
    min_size=1,
)
modes = st.sampled_from(["auto", "separate", "colocate"]) | st.permutations(ROLES).flatmap(
    lambda roles: st.integers(0, 5).map(lambda cut: [roles[:cut], roles[cut:]])
)
clusters = st.lists(st.tuples(st.integers(1, 16), st.integers(0, 16)), min_size=1, max_size=6).map(
    lambda sizes: [Machine(f"10.0.0.{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]
)


def used(plan: Placement) -> dict[tuple[int, int], float]:
    """Return (group, bundle) -> GPUs taken of it."""
    taken: dict[tuple[int, int], float] = defaultdict(float)
    for slots in plan.slots.values():
        for slot in slots:
            assert slot.group is not None
            taken[slot.group, slot.bundle] += slot.gpus
    return taken


@given(requests, modes, clusters)
def test_slots_fit_their_bundles_and_groups_their_machines(
    wanted: dict[str, ResourceRequest], mode: str, cluster: list[Machine]
) -> None:
    try:
        plan = place(wanted, "cuda", mode, cluster)
    except UserError:
        return
    assert {role: len(slots) for role, slots in plan.slots.items()} == {role: w.count for role, w in wanted.items()}
    for (group, bundle), taken in used(plan).items():
        assert taken <= plan.groups[group].bundles[bundle]["GPU"] + 1e-9
    pinned = [group for group in plan.groups if group.machine]
    assert len({group.machine for group in pinned}) == len(pinned)  # a machine is in one group
    total = 0.0
    for group in plan.groups:
        gpus = sum(bundle["GPU"] for bundle in group.bundles)
        total += gpus
        if group.machine:
            assert gpus <= next(machine.gpus for machine in cluster if machine.address == group.machine)
    assert total <= sum(machine.gpus for machine in cluster)
    for role, request in wanted.items():
        if request.nodes:  # as many machines as requested, with the same number of neighbouring ranks on each
            machines = [plan.groups[slot.group].machine for slot in plan.slots[role] if slot.group is not None]
            assert len(set(machines)) == request.nodes
            assert machines == sorted(machines, key=machines.index)
            assert {machines.count(machine) for machine in machines} == {request.count // request.nodes}


@given(st.dictionaries(st.sampled_from(ROLES), st.integers(1, 8), min_size=1), st.integers(0, 40))
def test_without_nodes_only_the_number_of_gpus_counts(counts: dict[str, int], gpus: int) -> None:
    wanted, cluster = {role: ResourceRequest(count, 1.0) for role, count in counts.items()}, [Machine("a", 64, gpus)]
    for mode, need in (("separate", sum(counts.values())), ("colocate", max(counts.values()))):
        if need <= gpus:
            (group,) = place(wanted, "cuda", mode, cluster).groups
            assert sum(bundle["GPU"] for bundle in group.bundles) == need
            assert group.machine is None
        else:
            with pytest.raises(UserError, match="GPUs"):
                place(wanted, "cuda", mode, cluster)


@given(st.dictionaries(st.sampled_from(ROLES), st.integers(1, 8), min_size=1), st.integers(1, 16))
def test_on_cpu_cores_limit_a_role_and_nothing_is_reserved(counts: dict[str, int], cores: int) -> None:
    wanted, cluster = {role: ResourceRequest(count, 1.0) for role, count in counts.items()}, [Machine("a", cores, 0)]
    if max(counts.values()) > cores:
        with pytest.raises(UserError, match=f"there are {cores} CPU cores"):
            place(wanted, "cpu", "auto", cluster)
    else:
        plan = place(wanted, "cpu", "auto", cluster)
        assert plan.groups == []
        assert all(slot.group is None for slots in plan.slots.values() for slot in slots)
        assert max_processes_per_node(plan, list(counts), cluster) == sum(counts.values())


THREE = [Machine("10.77.0.1", 2, 0), Machine("10.77.0.2", 2, 0), Machine("10.77.0.3", 2, 0)]
SPREAD = {
    "actor": ResourceRequest(2, 1.0, 2),
    "critic": ResourceRequest(1, 1.0),
    "reward": ResourceRequest(1, 1.0),
    "rollout": ResourceRequest(2, 1.0, 1),
}
LISTS = [["actor", "critic", "reference", "reward"], ["rollout"]]


def test_roles_run_on_the_machines_of_their_list() -> None:
    plan = place(SPREAD, "cpu", LISTS, THREE)
    where = {
        role: [plan.groups[slot.group].machine for slot in slots if slot.group is not None]
        for role, slots in plan.slots.items()
    }
    assert where == {
        "actor": ["10.77.0.1", "10.77.0.2"],
        "critic": ["10.77.0.1"],
        "reward": ["10.77.0.1"],
        "rollout": ["10.77.0.3", "10.77.0.3"],
    }
    assert max_processes_per_node(plan, ["actor", "critic", "reward"], THREE) == 3


@pytest.mark.parametrize(
    ("wanted", "mode", "device", "machines", "sentence"),
    [
        (
            SPREAD,
            LISTS,
            "cpu",
            THREE[:2],
            r"rollout: 1 machine of its own with 2 CPU cores each required, free: none of 2 machines",
        ),
        (
            SPREAD | {"actor": ResourceRequest(3, 1.0, 2)},
            LISTS,
            "cpu",
            THREE,
            "3 processes, which cannot be spread evenly over 2",
        ),
        (
            SPREAD | {"critic": ResourceRequest(1, 1.0, 1)},
            LISTS,
            "cpu",
            THREE,
            "actor.nodes is 2 and cluster.critic.nodes is 1",
        ),
        (
            SPREAD | {"rollout": ResourceRequest(3, 1.0, 1)},
            LISTS,
            "cpu",
            THREE,
            "with 3 CPU cores each required, free: 10.77.0.3 .* of 3 machines",
        ),
        (SPREAD, LISTS, "cuda", THREE, "with 1 GPU each required"),
        (SPREAD, [["actor"], ["actor"]], "cpu", THREE, "names actor twice"),
        (
            {"actor": ResourceRequest(1, 1.0), "rollout": ResourceRequest(1, 2.0)},
            "colocate",
            "cuda",
            THREE,
            "rollout takes 2 GPUs",
        ),
    ],
)
def test_a_placement_without_room_is_refused(
    wanted: dict[str, ResourceRequest], mode: str, device: str, machines: list[Machine], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        place(wanted, device, mode, machines)


def test_processes_on_gpus_are_counted_per_machine() -> None:
    """Place four roles of 32 ranks on four machines of 8 GPUs: 32 processes on each, not 128."""
    roles = ["actor", "critic", "reference", "reward"]
    wanted = {role: ResourceRequest(32, 1.0) for role in roles}
    cluster = [Machine(f"10.0.0.{n}", 64, 8) for n in range(4)]
    assert max_processes_per_node(place(wanted, "cuda", "colocate", cluster), roles, cluster) == 32
    assert max_processes_per_node(place(wanted, "cuda", "colocate", cluster), roles[:1], cluster) == 8


def test_a_head_node_without_cores_does_not_count() -> None:
    head, *workers = Machine("10.0.0.1", 0, 0), Machine("10.0.0.2", 64, 8), Machine("10.0.0.3", 32, 8)
    assert fewest_cores([head, *workers]) == 32
    assert fewest_cores([head]) == 1


def test_threads_share_the_cores_unless_they_are_set() -> None:
    assert [threads(None, 8, n) for n in (0, 1, 3, 8, 20)] == [8, 8, 2, 1, 1]
    assert threads(5, 8, 4) == 5
