"""The health of one rollout worker as a pure state machine: who may serve, who is late, who holds old weights."""

import time
from collections.abc import Callable
from enum import Enum


class State(Enum):
    """RESTARTING -> STALE -> HEALTHY <-> SUSPECT -> DEAD -> RESTARTING; new weights make any living worker STALE.

    The transition that matters most does not exist: a worker that came back never becomes HEALTHY without loading the
    current weights, so nothing is ever answered by old ones.
    """

    RESTARTING = "restarting"
    """A process is being started; it owes no answer."""
    STALE = "stale"
    """Up, without the current weights: it may be synced, not asked."""
    HEALTHY = "healthy"
    """Holds the current weights and answers in time."""
    SUSPECT = "suspect"
    """Late with an answer. It goes on serving: one long step should not drain a worker."""
    DEAD = "dead"
    """Gone, or silent for too long: killed, and replaced."""


class Health:
    """The state of one worker. It serves only while HEALTHY or SUSPECT, and only the version it holds.

    patience: seconds without an answer after which it is DEAD; after half of them it is SUSPECT.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic):
        self.state = State.RESTARTING
        self.version: int | None = None
        self._patience, self._clock = patience, clock
        self._since = clock()

    def on_started(self) -> None:
        """Note that its process is up."""
        self._go({State.RESTARTING}, State.STALE)

    def on_weights_loaded(self, version: int) -> None:
        """Note that it holds the weights of this version."""
        self._go({State.STALE}, State.HEALTHY)
        self.version = version

    def mark_stale(self) -> None:
        """Note that there are newer weights than its own."""
        self._go({State.STALE, State.HEALTHY, State.SUSPECT}, State.STALE)
        self.version = None

    def on_request(self) -> None:
        """Start the clock: it owes an answer from now on."""
        self._since = self._clock()

    def on_response(self) -> None:
        """Note a sign of life."""
        if self.state is State.SUSPECT:
            self.state = State.HEALTHY

    def on_timeout_check(self) -> State:
        """Look at the clock while no answer is there; return the state that follows."""
        silence = self._clock() - self._since
        if self.state in (State.HEALTHY, State.SUSPECT):
            if silence > self._patience:
                self.mark_dead()
            elif silence > self._patience / 2:
                self.state = State.SUSPECT
        return self.state

    def mark_dead(self) -> None:
        """Mark the worker dead."""
        self.state, self.version = State.DEAD, None

    def mark_restarting(self) -> None:
        """Note that another process takes its place."""
        self._go({State.DEAD}, State.RESTARTING)

    def serves(self, version: int) -> bool:
        """Return whether it may answer requests for this version."""
        return self.state in (State.HEALTHY, State.SUSPECT) and self.version == version

    def _go(self, before: set[State], after: State) -> None:
        if self.state not in before:
            raise ValueError(f"a worker that is {self.state.value} cannot become {after.value}")
        self.state = after
