"""The clock of chat templates: the time of the run, so that a run that resumes tomorrow renders the same prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

_frozen: datetime | None = None


def strftime_now(format: str) -> str:
    """Format the frozen time, or the present one; this is the function that templates call."""
    return (_frozen or datetime.now()).strftime(format)


@contextmanager
def frozen_at(time: datetime) -> Iterator[None]:
    """Let templates read this time inside the block. A block inside another keeps the time of the outer one."""
    global _frozen
    before = _frozen
    _frozen = before or time
    try:
        yield
    finally:
        _frozen = before
