"""Conversion of files of rankings from one form to another, with an account of the losses."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from quadriga.data.atomic_files import write_text_atomic
from quadriga.data.errors import UserError
from quadriga.data.loading import ranking_formats as formats
from quadriga.data.loading.ranking_formats import Dropped, FormName
from quadriga.data.loading.readers import BadRow, Row, read_source
from quadriga.data.records import Ranking
from quadriga.data.settings import Source

T = TypeVar("T")


@dataclass(slots=True)
class Conversion:
    """The account of a conversion: counts of rankings read, rows written, source rows without a ranking, and losses."""

    rankings: int = 0
    rows: int = 0
    unranked: int = 0
    dropped: Dropped = field(default_factory=Counter)


def convert(
    source: str | Path, target: str | Path, to: FormName, from_: FormName | None = None, force: bool = False
) -> Conversion:
    """Write the rankings of `source` to the file `target` in the form `to`.

    source: whatever a `path` of training data may be. target: .jsonl, or .json for a JSON list; it appears whole or not
    at all. from_: the form of the source; None recognises it row by row. force: replace an existing file.
    Raises UserError for a source that cannot be read, a bad row (file, line and reason), a source without rankings, and
    a target that exists, has another ending or cannot be written.
    """
    target = Path(target).expanduser()
    if target.suffix not in (".json", ".jsonl"):
        raise UserError(f"{target} must end in .jsonl, or in .json for a JSON list.")
    if target.exists() and not force:
        raise UserError(f"{target} exists already. Give another file, or --force to replace it.")
    result = Conversion()
    written: list[formats.Row] = []
    seen: Counter[str] = Counter()
    for rankings in _rankings(str(source), from_):
        result.unranked += not rankings
        for ranking in rankings:
            # Several people may have ranked one prompt. Other tools take records of one id for one record.
            seen[ranking.id] += 1
            if to != "quadriga" and seen[ranking.id] > 1:
                ranking = replace(ranking, id=f"{ranking.id}#{seen[ranking.id]}")
            rows, dropped = formats.write(ranking, to)
            result.rankings += 1
            result.dropped.update(dropped)
            written += rows
    result.rows = len(written)
    if not written:
        raise UserError(_why_nothing(str(source), to, result))
    _write(target, written)
    return result


def _rankings(source: str, form: FormName | None) -> Iterator[list[Ranking]]:
    """Yield the rankings of each row; neighbouring rows that are the pairs of one ranking give that ranking."""
    for (_, _, id_), group in groupby(read_source(Source(path=source)), key=_origin):
        rows: list[Row] = []
        found: list[Ranking] = []
        for row in group:
            if isinstance(row, BadRow):
                raise _error(row)
            rows.append(row)
            found = _attempt(row, formats.read, row.values, form)
        if id_ is not None:
            found = [_attempt(rows[0], formats.from_trl, [row.values for row in rows])]
        yield found


def _origin(row: Row | BadRow) -> tuple[str, int | None, str | None]:
    """Return a key that is the row's own, or that of all rows that `to_trl` made of one ranking."""
    id_ = formats.ranking_id(row.values) if isinstance(row, Row) else None
    return row.file, row.line if id_ is None else None, id_


def _attempt(row: Row, read: Callable[..., T], *arguments: Any) -> T:
    try:
        return read(*arguments)
    except ValueError as error:
        raise _error(BadRow(row.file, row.line, str(error))) from None


def _error(row: BadRow) -> UserError:
    return UserError(f"{row}. Nothing was written: correct the row or remove it.")


def _why_nothing(source: str, to: FormName, result: Conversion) -> str:
    if not result.rankings:
        return f"{source} holds no ranking of two or more answers. Check the file and --from."
    reasons = "; ".join(f"{count} {loss}" for loss, count in result.dropped.items())
    return f"Nothing of {source} can be written as {to}, which cannot hold {reasons}. Choose another form with --to."


def _write(target: Path, rows: list[formats.Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if target.suffix == ".json" else "\n".join(lines) + "\n"
    try:
        write_text_atomic(target, text)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}. Give another file.") from None
