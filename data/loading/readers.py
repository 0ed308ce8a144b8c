"""Readers: rows from JSON lines, JSON, Parquet, text, Hugging Face data sets on disk and the built-in tables."""

import glob
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError
from quadriga.data.loading.values import cleaned
from quadriga.data.settings import Source

FORMATS = ".jsonl, .jsonl.gz, .json, .json.gz, .parquet, .txt, .txt.gz or .md"


@dataclass(slots=True)
class Row:
    """One row and its origin. `line` counts from 1; in Parquet files and data sets it is the row number."""

    file: str
    line: int
    values: dict[str, Any]


@dataclass(slots=True)
class BadRow:
    """A row that cannot be used, with its origin and the reason."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


def read_source(source: Source) -> Iterator[Row | BadRow]:
    """Yield the rows of a source in order, at most `source.rows` of them, with columns renamed and values cleaned.

    Raises UserError when the source does not exist or has an unknown format.
    """
    if source.builtin is not None:
        return (_renamed(row, source.columns) for row in _builtin(source))
    rows = islice((row for path in _paths(source.path or "") for row in _read_path(path)), source.rows)
    return (_cleaned(_renamed(row, source.columns)) for row in rows)


def _paths(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise UserError(f"No file {pattern} is there. Check the `path` (relative to {Path.cwd()}).")
    return found


def _read_path(path: Path) -> Iterator[Row | BadRow]:
    name = path.name.lower().removesuffix(".gz")
    try:
        if path.is_dir():
            yield from _read_dataset(path)
        elif name.endswith(".jsonl"):
            yield from _read_jsonl(path)
        elif name.endswith(".json"):
            yield from _read_json(path)
        elif name.endswith(".parquet"):
            yield from _read_parquet(path)
        elif name.endswith((".txt", ".md")):
            yield from _read_text(path)
        else:
            raise UserError(f"{path} has an unknown format. Give a {FORMATS} file, or a data set saved by `datasets`.")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Check that the file is complete.") from None


def _bytes(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _checked(path: Path, line: int, value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(str(path), line, "not a JSON object with columns")
    return Row(str(path), line, value)


def _read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    with _bytes(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                yield BadRow(str(path), number, f"not JSON ({error.msg}, column {error.colno})")
            except UnicodeDecodeError as error:
                yield BadRow(str(path), number, f"not UTF-8 text ({error.reason}, byte {error.start + 1})")
            else:
                yield _checked(path, number, value)


def _read_json(path: Path) -> Iterator[Row | BadRow]:
    with _bytes(path) as file:
        try:
            values = json.loads(file.read().decode("utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}). A file with one row per line must end in .jsonl.") from None
    if not isinstance(values, list):
        raise UserError(f"{path} is not a JSON list of rows. A file with one row per line must end in .jsonl.")
    for number, value in enumerate(values, 1):
        yield _checked(path, number, value)


def _read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file ({error}).") from None
    number = 0
    for batch in file.iter_batches():
        for value in batch.to_pylist():
            number += 1
            yield Row(str(path), number, value)


def _read_text(path: Path) -> Iterator[Row]:
    """Yield one row per paragraph; blank lines separate paragraphs."""
    with _bytes(path) as file:
        text = file.read().decode("utf-8-sig").replace("\r\n", "\n")
    line, position = 1, 0
    for match in re.finditer(r"\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", text):
        line, position = line + text.count("\n", position, match.start()), match.start()
        yield Row(str(path), line, {"text": match.group().rstrip()})


def _read_dataset(path: Path) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (FileNotFoundError, ValueError):
        raise UserError(
            f"{path} is a folder, but not a data set that `datasets` saved with save_to_disk. "
            f"For files in a folder give a glob such as {path}/*.jsonl."
        ) from None
    if isinstance(dataset, DatasetDict):
        raise UserError(
            f"{path} holds the splits {', '.join(dataset)}. Give the path of one: {path}/{next(iter(dataset))}."
        )
    for number, value in enumerate(dataset, 1):
        yield Row(str(path), number, value)


def _builtin(source: Source) -> Iterator[Row]:
    # Imported only here: most runs read files.
    from quadriga.data.assistant.world import TABLES

    name = source.builtin or ""
    if source.rows is None:
        raise UserError(f"The built-in table {name} is generated: set `rows` to the number of rows.")
    for number, value in enumerate(TABLES[name](source.rows, source.seed), 1):
        yield Row(name, number, value)


def _renamed(row: Row | BadRow, columns: dict[str, str]) -> Row | BadRow:
    if isinstance(row, BadRow) or not columns:
        return row
    for theirs in columns.values():
        if theirs not in row.values:
            return BadRow(row.file, row.line, f"no column {theirs!r} (it has {', '.join(row.values)})")
    taken = {ours: row.values[theirs] for ours, theirs in columns.items()}
    rest = {name: value for name, value in row.values.items() if name not in columns.values()}
    return Row(row.file, row.line, rest | taken)


def _cleaned(row: Row | BadRow) -> Row | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        return Row(row.file, row.line, cleaned(row.values))
    except ValueError as error:
        return BadRow(row.file, row.line, str(error))
