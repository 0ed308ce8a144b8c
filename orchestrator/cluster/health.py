"""What is known of one rollout worker, as a pure state machine: who may serve, who is late, who holds old weights."""

import time
from collections.abc import Callable
from enum import Enum


class State(Enum):
    """RESTARTING -> STALE (up, without current weights) -> HEALTHY <-> SUSPECT (late) -> DEAD -> RESTARTING."""

    RESTARTING = "restarting"
    STALE = "stale"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"


class Health:
    """The state of one worker. It serves only while HEALTHY or SUSPECT, and only the version it holds.

    patience: seconds without an answer after which it is DEAD; after half of them it is SUSPECT.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic):
        self.state = State.RESTARTING
        self.version: int | None = None
        self._patience, self._clock = patience, clock
        self._since = clock()

    def started(self) -> None:
        """Its process is up."""
        self._go({State.RESTARTING}, State.STALE)

    def loaded(self, version: int) -> None:
        """It holds the weights of this version."""
        self._go({State.STALE}, State.HEALTHY)
        self.version = version

    def outdated(self) -> None:
        """There are newer weights than its own."""
        self._go({State.STALE, State.HEALTHY, State.SUSPECT}, State.STALE)
        self.version = None

    def asked(self) -> None:
        """It owes an answer from now on."""
        self._since = self._clock()

    def answered(self) -> None:
        """It gave a sign of life."""
        if self.state is State.SUSPECT:
            self.state = State.HEALTHY

    def waited(self) -> State:
        """No answer is there yet: the state after looking at the clock."""
        silence = self._clock() - self._since
        if self.state in (State.HEALTHY, State.SUSPECT):
            if silence > self._patience:
                self.died()
            elif silence > self._patience / 2:
                self.state = State.SUSPECT
        return self.state

    def died(self) -> None:
        """It is gone, or counts as gone."""
        self.state, self.version = State.DEAD, None

    def restarting(self) -> None:
        """Another process takes its place."""
        self._go({State.DEAD}, State.RESTARTING)

    def serves(self, version: int) -> bool:
        """Whether it may answer requests for this version."""
        return self.state in (State.HEALTHY, State.SUSPECT) and self.version == version

    def _go(self, before: set[State], after: State) -> None:
        if self.state not in before:
            raise ValueError(f"a worker that is {self.state.value} cannot become {after.value}")
        self.state = after
