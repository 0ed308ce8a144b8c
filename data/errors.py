"""Exceptions: how a run can fail. Every error that a user sees is one of these:

* UserError         bad input that the user can fix: one paragraph that says what to do; exit code 2
  x Unreachable     no Ray cluster answers
* Fault             something broke while running: an invariant, a deadline, a full disk; exit code 1
  x Lost            a process died, hung or failed for an external reason; a replacement may succeed
    + ProcessDied   the process is gone for certain, so it explains the failure of others
    + Repeating     an error of the code in a save, an export or a load: told at once, never answered by a replacement

Exceptions that never leave the file that raises them are declared there.
"""

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
"""Exit code of a command that the user stopped: 128 + SIGINT, as shells have it."""


class UserError(Exception):
    """Bad input. The message is one paragraph that says what to do; the command exits with 2 and no traceback."""


class Unreachable(UserError):
    """No Ray cluster answers at an address."""


class Fault(Exception):
    """Something broke while running. The command exits with 1.

    phase: the part of a step (or of the run) in which it happened; `str()` puts it before the message. process: the
    process that failed, for example `rollout 1`. Both are kept for run.json and for recovery.
    """

    def __init__(self, message: str, *, phase: str = "", process: str = ""):
        super().__init__(message)
        self.message, self.phase, self.process = message, phase, process

    def __str__(self) -> str:
        return f"{self.phase}: {self.message}" if self.phase else self.message


class Lost(Fault):
    """A process died, hung or failed for an external reason; a replacement may succeed."""


class Repeating(Lost):
    """A call raised an error that a replacement would raise again, unless a death that comes to light explains it."""

    def as_fault(self) -> Fault:
        """Return the Fault to stop with."""
        return Fault(self.message, phase=self.phase, process=self.process)


class ProcessDied(Lost):
    """A process is gone for certain."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: `; did you mean `x`?`, or all known names if none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; choose from {', '.join(f'`{item}`' for item in known)}."
