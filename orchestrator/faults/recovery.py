"""How much may be lost before a run stops: a budget, and the history that says what the first cause was."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from quadriga.actors.settings import RecoverySettings
from quadriga.data.errors import Fault, Lost


class Recovery:
    """Counts losses. record: told of every loss that may be recovered from (run.json keeps them as events)."""

    def __init__(self, settings: RecoverySettings, record: Callable[..., Any] = lambda event, **fields: None):
        self._settings, self._record = settings, record
        self._places: Counter[tuple[int, str, str]] = Counter()
        self.history: list[tuple[int, Lost]] = []
        """Every loss so far, with its step."""
        self.step = 0

    def note(self, loss: Lost) -> None:
        """A process was lost in step `self.step`.

        Raises Fault, with the first loss first and all of them after it, when there are too many in all or too many
        in one place (step, phase and process).
        """
        place = (self.step, loss.phase, loss.process)
        self._places[place] += 1
        self.history.append((self.step, loss))
        if len(self.history) > self._settings.max_losses:
            raise self._stopped(f"these are more than recovery.max_losses = {self._settings.max_losses} losses")
        if self._places[place] > self._settings.max_at_one_place:
            limit = self._settings.max_at_one_place
            raise self._stopped(f"more than recovery.max_at_one_place = {limit} of them at the same place")
        self._record("lost", step=self.step, phase=loss.phase, process=loss.process, cause=str(loss))

    def _stopped(self, reason: str) -> Fault:
        """The first loss, which is the root cause, as a fault that nobody tries to recover from."""
        step, first = self.history[0]
        message = first.message
        if len(self.history) > 1:
            listed = "; ".join(
                f"({number}) step {at}, {loss}" for number, (at, loss) in enumerate(self.history, start=1)
            )
            message = f"{message} (step {step}). The run stops because {reason}: {listed}"
        return Fault(message, phase=first.phase, process=first.process)
