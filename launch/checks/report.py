"""What checks find, and how they say it. Imports nothing that a broken installation could break."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from quadriga.data.errors import UserError

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at. `problem`: it must be mended; `note`: it is worth knowing."""

    level: Level
    subject: str
    text: str


@dataclass
class CheckReport:
    """Findings as they come in, each once: two roles often start from one model."""

    subject: str = ""
    results: list[CheckResult] = field(default_factory=list)

    def run(self, check: Callable[..., str | None], *arguments: Any) -> bool:
        """Keep what a check says: its text, or the UserError it raises. True when it found no problem."""
        try:
            text = check(*arguments)
        except UserError as error:
            self._add("problem", str(error))
            return False
        if text:
            self._add("ok", text)
        return True

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._add("note", text)

    def _add(self, level: Level, text: str) -> None:
        result = CheckResult(level, self.subject, text)
        if result not in self.results:
            self.results.append(result)


@cache
def gpu_count() -> int:
    """GPUs that torch can use here. Looks only where there is a driver, because the question costs seconds."""
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidia0").exists():
        return 0
    import torch

    return torch.cuda.device_count()
