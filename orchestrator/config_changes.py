"""Changes between attempts at a run, of its config and its rows: which alter its training, and which are refused."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel, ValidationError

from quadriga.data.loading.source_digest import SourceDigest

HARMLESS = ("name", "run_dir", "checkpoint", "tracking", "cluster", "faults")
"""Keys that decide where and how a run runs, not its results."""

NOT_HARMLESS = ("cluster.dtype", "cluster.deepspeed")
"""Exceptions below `HARMLESS`: they change the numbers."""

Changes = dict[str, tuple[Any, Any]]
"""`key.path` -> (old, new)."""


class Described(str):
    """A value that messages describe in words instead of quoting it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


ABSENT = Described("absent")
"""The value of a key that a config does not have."""


def altering_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Return every change that alters training; a key that only one of the configs has is a change.

    Configs of other versions of Quadriga have other keys: pass them through `in_this_version` first.
    """
    return {
        key: change
        for key, change in sorted(_differences(before, after))
        if _is_under(key, NOT_HARMLESS) or not _is_under(key, HARMLESS)
    }


def in_this_version(config: Mapping[str, Any], settings: type[BaseModel]) -> dict[str, Any]:
    """Return a config that an earlier version may have written with the keys of this one.

    Keys that are gone are left out, and new ones have their defaults: the earlier version trained as they say. A config
    that is not valid any more for another reason is returned as it is.
    """
    known = copy.deepcopy(dict(config))
    while True:
        try:
            return settings.model_validate(known).model_dump(mode="json")
        except ValidationError as error:
            gone = [detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"]
            if not any([_remove(known, loc) for loc in gone]):
                return dict(config)


def data_changes(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, SourceDigest], changes: Iterable[str]
) -> Changes:
    """Return the changes of rows, by the key of their source.

    before: key -> `SourceDigest.to_json` of what the run read. after: key -> what it would read. changes: keys of the
    config that have changed; a source whose settings have is compared no further.
    """
    changed = tuple(changes)
    found: Changes = {}
    for key in before.keys() & after.keys():
        old, new = before[key], after[key]
        if old["digest"] == new.digest or any(_is_under(name, [key]) for name in changed):
            continue
        same = f"the first {old['rows']} of them the same" if new.earlier == old["digest"] else "with other content"
        text = f"{new.rows} rows, {same}"
        found[key] = Described(f"{old['rows']} rows"), Described(text)
    return dict(sorted(found.items()))


def refused(changes: Mapping[str, tuple[Any, Any]], allowed: Iterable[str]) -> Changes:
    """Return the changes that are not under an allowed key."""
    names = tuple(allowed)
    return {key: change for key, change in changes.items() if not _is_under(key, names)}


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield (dotted path, (old, new)) where two trees of mappings and lists differ, as deep as both go."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names: Iterable[Any] = dict.fromkeys([*old, *new])
        pairs = [(name, old.get(name, ABSENT), new.get(name, ABSENT)) for name in names]
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        pairs = [(n, *pair) for n, pair in enumerate(zip_longest(old, new, fillvalue=ABSENT))]
    else:
        if old != new:
            yield path, (old, new)
        return
    for name, before, after in pairs:
        yield from _differences(before, after, f"{path}.{name}" if path else f"{name}")


def _remove(tree: Any, loc: Sequence[int | str]) -> bool:
    """Remove a key; return whether it was there. loc: pydantic's location, with parts that it adds for unions."""
    for part in loc[:-1]:
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[str(part)]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
    return isinstance(tree, dict) and tree.pop(loc[-1], ABSENT) is not ABSENT


def _is_under(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
