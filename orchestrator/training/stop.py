"""Stop: a clean end of a stage when somebody asks for one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from quadriga.data.rundir import RunDir


class Stop:
    """Ctrl-C, SIGTERM, SIGHUP and `quadriga stop` ask for a clean stop: the step under way is finished and saved.

    A second Ctrl-C does not wait. SIGHUP comes when the terminal is closed; `nohup` has it ignored.
    """

    def __init__(self, run: RunDir):
        self._run, self._signalled = run, False

    @property
    def requested(self) -> bool:
        """Return whether a stop was requested."""
        return self._signalled or self._run.requested("stop") is not None

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Handle the signals inside the block, except SIGHUP where it is ignored."""
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handled.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in handled}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
