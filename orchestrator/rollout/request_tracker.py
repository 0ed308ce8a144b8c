"""Which request is where: waiting, open at a worker, answered, or aborted. Each ends exactly once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from quadriga.actors.rollout.engine_loop import Finished, Request
from quadriga.data.errors import Fault


@dataclass
class RequestTracker:
    """The requests of one batch. reissued: how many were given out again after their worker was lost."""

    requests: Sequence[Request]
    answers: dict[str, Finished] = field(default_factory=dict)
    aborted: int = 0
    reissued: int = 0

    def __post_init__(self) -> None:
        self._waiting = list(self.requests)
        self._open: dict[str, dict[str, Request]] = {}

    @property
    def remaining(self) -> int:
        """How many are neither answered nor aborted."""
        return len(self.requests) - len(self.answers) - self.aborted

    def assign(self, workers: Sequence[str]) -> dict[str, list[Request]]:
        """Give what waits to these workers, in turn: worker -> its new requests, none of them empty."""
        if not workers:
            return {}
        shares = {worker: self._waiting[number :: len(workers)] for number, worker in enumerate(workers)}
        shares = {worker: share for worker, share in shares.items() if share}
        self._waiting = []
        for worker, share in shares.items():
            self._open.setdefault(worker, {}).update({request.id: request for request in share})
        return shares

    def record(self, worker: str, answers: Iterable[Finished]) -> None:
        """Note a worker's answers. Raises Fault for one that it does not owe (an answer from before it was lost)."""
        for answer in answers:
            if self._open.get(worker, {}).pop(answer.id, None) is None:
                raise Fault(f"{worker} answered {answer.id}, which it was not asked", phase="generate", process=worker)
            self.answers[answer.id] = answer

    def has_open(self, worker: str) -> bool:
        """Whether a worker has requests that it has not answered."""
        return bool(self._open.get(worker))

    def reissue(self, worker: str) -> None:
        """A worker is gone: what it owed waits for another."""
        lost = self._open.pop(worker, {})
        self._waiting += lost.values()
        self.reissued += len(lost)

    def abort(self) -> None:
        """Give up what is not answered."""
        self.aborted += self.remaining
        self._waiting, self._open = [], {}

    def check(self) -> None:
        """Raises Fault unless every request ended, in one way."""
        ended = len(self.answers) + self.aborted
        if ended != len(self.requests) or self._waiting or any(self._open.values()):
            raise Fault(f"{len(self.requests)} requests were made but {ended} ended", phase="generate")
