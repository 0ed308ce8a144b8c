"""What a changed config means for a run that goes on: nothing, or another training than the one that was begun."""

from collections.abc import Iterable, Mapping
from typing import Any

HARMLESS = ("name", "run_dir", "checkpoint", "tracking", "cluster", "faults")
"""Keys that decide where and how a run runs, not what it computes."""

NOT_HARMLESS = ("cluster.dtype", "cluster.deepspeed")


def altering_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """`key.path` -> (old, new) of what changed and alters training. Keys that one of both does not have are left out:
    they belong to another version of this program, with its defaults."""
    old, new = flat(before), flat(after)
    return {
        key: (old[key], new[key])
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key] and (_is_under(key, NOT_HARMLESS) or not _is_under(key, HARMLESS))
    }


def refused(changes: Mapping[str, tuple[Any, Any]], allowed: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Those changes that are not under an allowed key."""
    names = tuple(allowed)
    return {key: change for key, change in changes.items() if not _is_under(key, names)}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted paths; empty ones, and what is in neither, are values."""
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and value:
        items = enumerate(value)
    else:
        return {path: [] if value == () else value}
    return {
        key: leaf for name, item in items for key, leaf in flat(item, f"{path}.{name}" if path else f"{name}").items()
    }


def _is_under(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
