"""Health: a pure state machine of one rollout worker, which decides whether it may serve."""

import time
from collections.abc import Callable
from enum import Enum


class State(Enum):
    """RESTARTING -> STALE -> HEALTHY <-> SUSPECT -> DEAD -> RESTARTING; new weights make any living worker STALE.

    The transition that matters most does not exist: a worker that came back never becomes HEALTHY without loading the
    current weights, so no request is ever answered with old ones.
    """

    RESTARTING = "restarting"
    """A process is being started; no answer is expected of it."""
    STALE = "stale"
    """Up, but without the current weights: it may be synced and gets no requests."""
    HEALTHY = "healthy"
    """Holds the current weights and answers in time."""
    SUSPECT = "suspect"
    """Late with an answer. It still serves: one long step should not drain a worker."""
    DEAD = "dead"
    """Gone, or silent for too long: it is killed and replaced."""


class Health:
    """The state of one worker, which serves only while HEALTHY or SUSPECT, and only the version that it holds.

    patience: seconds without an answer until it is DEAD; after half of them it is SUSPECT. clock: the time in seconds.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic):
        self.state = State.RESTARTING
        self.version: int | None = None
        self._patience, self._clock = patience, clock
        self._since = clock()

    def on_started(self) -> None:
        """Record that its process is up."""
        self._go({State.RESTARTING}, State.STALE)

    def on_weights_loaded(self, version: int) -> None:
        """Record that it holds the weights of this version."""
        self._go({State.STALE}, State.HEALTHY)
        self.version = version

    def mark_stale(self) -> None:
        """Record that there are newer weights than the ones that it holds."""
        self._go({State.STALE, State.HEALTHY, State.SUSPECT}, State.STALE)
        self.version = None

    def on_request(self) -> None:
        """Start the clock: an answer is due from now on."""
        self._since = self._clock()

    def on_response(self) -> None:
        """Record a sign of life."""
        if self.state is State.SUSPECT:
            self.state = State.HEALTHY

    def on_timeout_check(self) -> State:
        """Compare the time since the request with the patience; return the state that follows."""
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
        """Record that another process takes its place."""
        self._go({State.DEAD}, State.RESTARTING)

    def serves(self, version: int) -> bool:
        """Return whether it may answer requests for this version."""
        return self.state in (State.HEALTHY, State.SUSPECT) and self.version == version

    def _go(self, before: set[State], after: State) -> None:
        if self.state not in before:
            raise ValueError(f"a worker that is {self.state.value} cannot become {after.value}")
        self.state = after
