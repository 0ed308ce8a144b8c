"""Output to a terminal or pipe that may go away: a closed screen does not stop a run."""

import errno
import os
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)
"""Errors of a pipe that nobody reads and of a terminal that was closed."""


class Lasting:
    """A text stream that drops what it is given once nobody can read it."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is buffered."""
        self._try(self._stream.flush)

    def _try(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            if error.errno not in GONE:
                raise
            # What is buffered, and what is written past Python, also needs somewhere to go.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def outlive_the_terminal() -> None:
    """Have standard output and error drop what nobody can read any more."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Lasting):
            setattr(sys, name, Lasting(stream))
