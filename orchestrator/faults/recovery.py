"""Recovery: the budget of lost processes, and their history, which names the root cause when the run stops."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from quadriga.actors.settings import RecoverySettings
from quadriga.data.errors import Fault, Lost


class Recovery:
    """Counts losses. record: called for every loss within the budget (`RunDir.note` adds an event to run.json)."""

    def __init__(self, settings: RecoverySettings, record: Callable[..., Any] = lambda event, **fields: None):
        self._settings, self._record = settings, record
        self._places: Counter[tuple[int, str, str]] = Counter()
        self.history: list[tuple[int, Lost]] = []
        """(step, loss) of every loss so far."""
        self.step = 0

    def note(self, loss: Lost) -> None:
        """Record that a process was lost in step `self.step`.

        Raises Fault, which names the first loss and then lists all of them, if there are too many in all or too many at
        one place (step, phase and process).
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
        """Return the first loss, which is the root cause, as a Fault that is not recovered from."""
        step, first = self.history[0]
        message = first.message
        if len(self.history) > 1:
            listed = "; ".join(
                f"({number}) step {at}, {loss}" for number, (at, loss) in enumerate(self.history, start=1)
            )
            message = f"{message} (step {step}). The run stops because {reason}: {listed}"
        return Fault(message, phase=first.phase, process=first.process)
