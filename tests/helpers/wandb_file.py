"""W&B's offline file, read back."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError


def read_offline(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a 7-byte header, then the LevelDB log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, body = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        body += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(body)
            body = b""


def read_finished(path: Path) -> list[Any]:
    """All records, once W&B's own process has written the last of them."""
    deadline = time.monotonic() + 20
    while True:
        try:
            records = list(read_offline(path))
            if records and records[-1].WhichOneof("record_type") == "exit":
                return records
        except (DecodeError, AssertionError):  # caught while it was being written
            pass
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.05)


def of_kind(records: list[Any], kind: str) -> list[Any]:
    """The contents of all records of one type: run, metric, history, summary, exit."""
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def history(records: list[Any]) -> list[dict[str, Any]]:
    """The logged rows, nested keys as nested dicts."""
    rows = []
    for entry in of_kind(records, "history"):
        row: dict[str, Any] = {}
        for item in entry.item:
            keys = list(item.nested_key) or [item.key]
            place = row
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = json.loads(item.value_json)
        rows.append(row)
    return rows
