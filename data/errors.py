"""The ways a run ends badly: the user can mend it, a process was lost, or something broke."""


class UserError(Exception):
    """Bad input. The message is one paragraph that says what to do; the command exits with 2 and no traceback."""


class Fault(Exception):
    """Something broke while running: a deadline, an invariant, a full disk. The command exits with 1.

    phase, actor: where it happened, kept for run.json and the last line on the screen.
    """

    def __init__(self, message: str, phase: str = "", actor: str = ""):
        super().__init__(message)
        self.phase, self.actor = phase, actor


class Lost(Fault):
    """A process that died, hung or failed for no reason of ours: another one can take its place."""
