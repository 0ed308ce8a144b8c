"""CPU quotas of both versions of cgroups, read from made-up trees of the kernel's files."""

from pathlib import Path

import pytest

from quadriga.actors.runtime import device
from quadriga.actors.runtime.cpu_quota import cpu_quota


@pytest.fixture
def quota(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function that writes files and the list of groups, and returns the quota read from them."""

    def read(groups: str, **files: str) -> float | None:
        for name, text in files.items():
            file = tmp_path / "sys" / name.replace("__", "/").replace("cpu_", "cpu.")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "groups").write_text(groups)
        return cpu_quota(tmp_path / "sys", tmp_path / "groups")

    return read


def test_version_2(quota) -> None:  # type: ignore[no-untyped-def]
    assert quota("0::/\n", cpu_max="150000 100000\n") == 1.5


def test_smallest_limit_of_the_groups_above_holds(quota) -> None:  # type: ignore[no-untyped-def]
    assert quota("0::/a/b\n", a__b__cpu_max="max 100000\n", a__cpu_max="200000 100000\n", cpu_max="max 100000") == 2.0


def test_path_of_the_host_that_is_not_mounted(quota) -> None:  # type: ignore[no-untyped-def]
    assert quota("0::/docker/123\n", cpu_max="50000 100000\n") == 0.5


def test_version_1(quota) -> None:  # type: ignore[no-untyped-def]
    files = {"cpu,cpuacct__d__cpu_cfs_quota_us": "300000", "cpu,cpuacct__d__cpu_cfs_period_us": "100000"}
    assert quota("5:memory:/d\n4:cpu,cpuacct:/d\n", **files) == 3.0


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense"])
def test_no_limit(text: str, quota) -> None:  # type: ignore[no-untyped-def]
    assert quota("0::/\n", cpu_max=text) is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 6), (0.5, 1), (1.5, 2), (64.0, 6)])
def test_cores_are_the_fewer_of_affinity_and_quota(
    limit: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_quota", lambda: limit)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(6)))
    assert device.cores() == expected
