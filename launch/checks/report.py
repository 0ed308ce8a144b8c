"""CheckReport: the results of checks. Imports nothing that a broken installation could break."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from quadriga.data.errors import UserError

Level = Literal["ok", "note", "problem"]
"""`ok`: as it should be; `note`: worth knowing; `problem`: must be fixed before a run."""


class Note(str):
    """A check's text that is worth knowing, where a plain one says that all is well."""

    __slots__ = ()


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check. subject: the machine part, package, stage or host that was checked."""

    level: Level
    subject: str
    text: str


@dataclass
class CheckReport:
    """The results of checks in the order of their runs, each once: two roles often start from one model.

    subject: the subject of the results that are added next.
    """

    subject: str = ""
    results: list[CheckResult] = field(default_factory=list)

    def run(self, check: Callable[..., str | None], *arguments: Any) -> bool:
        """Run a check and keep its text, or its UserError as a problem. Return whether it found no problem."""
        try:
            text = check(*arguments)
        except UserError as error:
            self._add("problem", str(error))
            return False
        if text:
            self._add("note" if isinstance(text, Note) else "ok", text)
        return True

    def note(self, text: str) -> None:
        """Add a result that is worth knowing but is not a problem."""
        self._add("note", text)

    def _add(self, level: Level, text: str) -> None:
        result = CheckResult(level, self.subject, text)
        if result not in self.results:
            self.results.append(result)


@cache
def gpu_count() -> int:
    """Return how many GPUs torch can use here. Asks torch only where there is a driver: importing it takes seconds."""
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidia0").exists():
        return 0
    import torch

    return torch.cuda.device_count()
