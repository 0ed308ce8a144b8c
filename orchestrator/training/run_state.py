"""RunState: everything a resume needs besides the models, in one file."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from quadriga.data.atomic_files import write_json_atomic


@dataclass
class RunState:
    """Where a stage is. Data order and sampling seeds are functions of (seed, step), so `step` is their cursor too.

    step: finished steps. tracker_id: W&B id. kl: the KL controller's state. tokens, samples: consumed so far.
    seconds: wall clock over all attempts. measured: held-out losses so far, as (step, loss). best: (step, value) of the
    checkpoint that `checkpoint.keep_best` keeps. The random state of every rank is in its own folder of the checkpoint.
    """

    step: int = 0
    tracker_id: str | None = None
    kl: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    samples: int = 0
    seconds: float = 0.0
    measured: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json_atomic(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "RunState":
        """Read what `write` wrote. Raises ValueError for unknown fields."""
        values: dict[str, Any] = json.loads(path.read_text())
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"{path} holds unknown fields: {', '.join(sorted(unknown))}")
        values["measured"] = [(int(step), float(loss)) for step, loss in values.get("measured", [])]
        if values.get("best") is not None:
            values["best"] = (int(values["best"][0]), float(values["best"][1]))
        return cls(**values)
