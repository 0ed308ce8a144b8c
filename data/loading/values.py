"""Values of rows as other programs write them: null columns, halves of characters, types beyond JSON."""

import re
from collections.abc import Mapping
from typing import Any

OURS = {"id", "text", "messages", "prompt", "completion", "chosen", "rejected", "responses", "ranking", "dialogue"}
OURS |= {"chosen_id", "rejected_id", "message_tree_id", "fields", "data", "annotations"}
"""Columns that say what a row is. Where data sets of different columns were joined, those of the others are null."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def cleaned(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the columns of a row: without those of ours that are null, and with values that JSON can hold.

    Values of other types (dates, decimals, bytes ...) become the text that Python has for them, arrays become lists.
    Raises ValueError for half of a character (an unpaired surrogate), naming column and position.
    """
    result = {}
    for key, value in values.items():
        name = _plain(key if isinstance(key, str) else str(key), "the name of a column")
        if value is not None or name not in OURS:
            result[name] = _plain(value, f"column {name!r}")
    return result


def _plain(value: Any, where: str) -> Any:
    """Return a value of types that JSON can hold. Raises ValueError for half of a character."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        _check_text(value, where)
        return value
    if isinstance(value, Mapping):
        return {_plain(str(key), where): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if callable(to_list := getattr(value, "tolist", None)):  # arrays and scalars of numpy, torch and others
        return _plain(to_list(), where)
    # The address of an object would make the same row another one in every run.
    return _plain(_ADDRESS.sub("", str(value)), where)


def _check_text(text: str, where: str) -> None:
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise ValueError(
            f"half of a character (\\u{ord(found.group()):04x}) in {where}, position {found.start() + 1}: the text was "
            "cut inside a character such as an emoji"
        )
