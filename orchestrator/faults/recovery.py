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
        self.history: list[str] = []
        self.step = 0

    def note(self, loss: Lost) -> None:
        """A process was lost in step `self.step`.

        Raises Fault, with the first loss first and all of them after it, when there are too many in all or too many
        in one place (step, phase and process).
        """
        place = (self.step, loss.phase, loss.actor)
        self._places[place] += 1
        self.history.append(f"step {self.step}: {loss}")
        if len(self.history) > self._settings.max_losses:
            raise self._stopped(loss, f"these are more than recovery.max_losses = {self._settings.max_losses} losses")
        if self._places[place] > self._settings.max_at_one_place:
            limit = self._settings.max_at_one_place
            raise self._stopped(loss, f"more than recovery.max_at_one_place = {limit} of them at the same place")
        self._record("lost", step=self.step, phase=loss.phase, actor=loss.actor, cause=str(loss))

    def _stopped(self, loss: Lost, reason: str) -> Fault:
        if len(self.history) == 1:
            return Fault(str(loss), loss.phase, loss.actor)
        listed = "; ".join(f"({number}) {line}" for number, line in enumerate(self.history, start=1))
        return Fault(f"{self.history[0]}. The run stops because {reason}: {listed}", loss.phase, loss.actor)
