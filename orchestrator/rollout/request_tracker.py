"""RequestTracker: the state of each request of a batch (waiting, open at a worker, answered or aborted)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from quadriga.actors.rollout.engine_loop import Finished, Request
from quadriga.data.errors import Fault


@dataclass
class RequestTracker:
    """The requests of one batch, each of which ends exactly once.

    answers: request id -> answer. aborted: number of requests given up. reissued: number of times that a request of a
    lost worker was put back.
    """

    requests: Sequence[Request]
    answers: dict[str, Finished] = field(default_factory=dict)
    aborted: int = 0
    reissued: int = 0

    def __post_init__(self) -> None:
        self._waiting = list(self.requests)
        self._open: dict[str, dict[str, Request]] = {}

    @property
    def remaining(self) -> int:
        """The number of requests that are neither answered nor aborted."""
        return len(self.requests) - len(self.answers) - self.aborted

    def assign(self, workers: Sequence[str]) -> dict[str, list[Request]]:
        """Assign the waiting requests to workers in turn; return worker -> its new requests, without empty lists."""
        if not workers:
            return {}
        shares = {worker: self._waiting[number :: len(workers)] for number, worker in enumerate(workers)}
        shares = {worker: share for worker, share in shares.items() if share}
        self._waiting = []
        for worker, share in shares.items():
            self._open.setdefault(worker, {}).update({request.id: request for request in share})
        return shares

    def record(self, worker: str, answers: Iterable[Finished]) -> None:
        """Record a worker's answers. Raises Fault if one belongs to a request that is not open at that worker."""
        for answer in answers:
            if self._open.get(worker, {}).pop(answer.id, None) is None:
                raise Fault(f"{worker} answered {answer.id}, which it does not have", phase="generate", process=worker)
            self.answers[answer.id] = answer

    def has_open(self, worker: str) -> bool:
        """Return whether a worker has requests that it has not answered."""
        return bool(self._open.get(worker))

    def reissue(self, worker: str) -> None:
        """Put the open requests of a lost worker back among the waiting ones."""
        lost = self._open.pop(worker, {})
        self._waiting += lost.values()
        self.reissued += len(lost)

    def abort(self) -> None:
        """Give up all requests that are not answered."""
        self.aborted += self.remaining
        self._waiting, self._open = [], {}

    def check(self) -> None:
        """Raise Fault unless every request ended exactly once."""
        ended = len(self.answers) + self.aborted
        if ended != len(self.requests) or self._waiting or any(self._open.values()):
            raise Fault(f"{len(self.requests)} requests were made but {ended} ended", phase="generate")
