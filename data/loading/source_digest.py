"""SourceDigest: what a source of rows held, to tell whether a later attempt at a run reads the same."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from quadriga.data.loading.readers import BadRow, read_source
from quadriga.data.settings import Source


@dataclass(frozen=True)
class SourceDigest:
    """The rows of a source, in order.

    rows: their number, bad ones included. digest: a hash of all of them. earlier: the hash of as many rows as an
    earlier attempt read; None without one, or if there are fewer.
    """

    rows: int
    digest: str
    earlier: str | None = None

    @classmethod
    def read(cls, source: Source, earlier_rows: int | None = None) -> "SourceDigest":
        """Read a source and hash its rows. Raises UserError as `read_source`."""
        digest, rows, earlier = hashlib.blake2b(digest_size=16), 0, None
        for row in read_source(source):
            values: Any = row.reason if isinstance(row, BadRow) else row.values
            digest.update(json.dumps(values, default=str).encode() + b"\n")
            rows += 1
            if rows == earlier_rows:
                earlier = digest.hexdigest()
        return cls(rows, digest.hexdigest(), earlier)

    def to_json(self) -> dict[str, Any]:
        """Return the part that run.json keeps."""
        return {"rows": self.rows, "digest": self.digest}
