"""Placement as a pure plan: nobody sits where there is no room."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.actors.placement import Placement, place, threads
from quadriga.data.errors import UserError

wishes = st.dictionaries(
    st.sampled_from(["actor", "critic", "reference", "reward", "rollout"]),
    st.tuples(st.integers(1, 8), st.sampled_from([0.5, 1.0, 2.0])),
    min_size=1,
)


def used(plan: Placement) -> dict[int, float]:
    """GPUs taken of every bundle."""
    taken: dict[int, float] = defaultdict(float)
    for seats in plan.seats.values():
        for seat in seats:
            assert seat.bundle is not None
            taken[seat.bundle] += seat.gpus
    return taken


@given(wishes, st.sampled_from(["auto", "separate", "colocate"]), st.integers(0, 40))
def test_no_seat_is_beyond_its_bundle_and_none_beyond_the_cluster(
    wanted: dict[str, tuple[int, float]], mode: str, gpus: int
) -> None:
    try:
        plan = place(wanted, "cuda", mode, 64, gpus)
    except UserError as error:
        total, widest = sum(n * share for n, share in wanted.values()), max(n for n, _ in wanted.values())
        assert (total if mode == "separate" else widest) > gpus and "GPUs" in str(error)
        return
    assert {role: len(seats) for role, seats in plan.seats.items()} == {role: n for role, (n, _) in wanted.items()}
    assert sum(bundle["GPU"] for bundle in plan.bundles) <= gpus
    for bundle, taken in used(plan).items():
        assert taken <= plan.bundles[bundle]["GPU"] + 1e-9


@given(wishes, st.integers(1, 16))
def test_on_cpu_nothing_is_reserved_and_no_role_has_more_processes_than_cores(
    wanted: dict[str, tuple[int, float]], cores: int
) -> None:
    if max(count for count, _ in wanted.values()) > cores:
        with pytest.raises(UserError, match=f"there are {cores} CPU cores"):
            place(wanted, "cpu", "auto", cores, 0)
    else:
        plan = place(wanted, "cpu", "auto", cores, 0)
        assert plan.bundles == [] and all(seat.bundle is None for seats in plan.seats.values() for seat in seats)


def test_threads_share_the_cores_unless_they_are_set() -> None:
    assert [threads(None, 8, n) for n in (0, 1, 3, 8, 20)] == [8, 8, 2, 1, 1]
    assert threads(5, 8, 4) == 5
