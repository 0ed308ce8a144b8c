"""CPU quota of a container: how many cores' time its cgroup allows, in either version of cgroups."""

from pathlib import Path


def cpu_quota(mounted: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the cores' worth of CPU time that this process may use, None without a limit.

    The limits of its cgroup and of all groups above it hold; the smallest is returned. mounted: mount point of the
    cgroup file system. groups: the kernel's list of this process's groups.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return None
    limits = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        version_2 = not controllers
        if not version_2 and "cpu" not in controllers.split(","):
            continue
        root = (
            mounted if version_2 else next((mounted / n for n in (controllers, "cpu") if (mounted / n).is_dir()), None)
        )
        if root is None:
            continue
        # In a container the path may be that of the host, which is not mounted: then the mount point is the group.
        below = root / path.strip("/")
        for group in [below, *below.parents]:
            limits.append(_limit(group, version_2))
            if group == root:
                break
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path, version_2: bool) -> float | None:
    """Return a group's own limit in cores."""
    try:
        if version_2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
