"""Changes of a config between attempts at a run: which alter its training, and which of those are refused."""

from collections.abc import Iterable, Mapping
from typing import Any

HARMLESS = ("name", "run_dir", "checkpoint", "tracking", "cluster", "faults")
"""Keys that decide where and how a run runs, not its results."""

NOT_HARMLESS = ("cluster.dtype", "cluster.deepspeed")
"""Exceptions below `HARMLESS`: they change the numbers."""


def altering_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return `key.path` -> (old, new) of every change that alters training.

    Keys that only one of the configs has are left out: they belong to another version of Quadriga, with its defaults.
    """
    old, new = flat(before), flat(after)
    return {
        key: (old[key], new[key])
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key] and (_is_under(key, NOT_HARMLESS) or not _is_under(key, HARMLESS))
    }


def refused(changes: Mapping[str, tuple[Any, Any]], allowed: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Return the changes that are not under an allowed key."""
    names = tuple(allowed)
    return {key: change for key, change in changes.items() if not _is_under(key, names)}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return dotted path -> value of nested mappings and lists; empty mappings and lists count as values."""
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
