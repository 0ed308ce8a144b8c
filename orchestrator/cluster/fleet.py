"""The rollout workers' processes: handles, health, and a replacement for each one that is lost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quadriga.actors.runtime.remote_calls import gather, poll
from quadriga.actors.settings import DeadlineSettings
from quadriga.data.errors import Lost
from quadriga.orchestrator.cluster.health import Health, State


@dataclass
class Worker:
    """One place in the fleet, whatever process holds it now. `starting`: reference of its start, until it is up."""

    name: str
    handle: Any
    starting: Any
    health: Health


@dataclass
class Fleet:
    """Starts workers and replaces lost ones.

    launch: index -> (handle, reference of its start). release: index of a worker that left for good. on_loss: told of
    every loss before the replacement starts; it raises when there have been too many.
    """

    launch: Callable[[int], tuple[Any, Any]]
    count: int
    deadlines: DeadlineSettings
    release: Callable[[int], None] = field(default=lambda index: None)
    on_loss: Callable[[Lost], None] = field(default=lambda loss: _refuse(loss))
    workers: list[Worker] = field(default_factory=list)
    memory: int = 0

    def start(self) -> None:
        """Create all processes; `await_start` waits for them."""
        for _ in range(self.count):
            self._join()

    def resize(self, count: int) -> None:
        """Have this many workers. Newcomers join when they are up; the last ones leave at once, so none may be busy."""
        import ray

        while len(self.workers) < count:
            self._join()
        for worker in self.workers[count:]:
            ray.kill(worker.handle)
            self.release(self.workers.index(worker))
        del self.workers[count:]
        self.count = count

    def await_start(self) -> None:
        """Until every worker is up. Raises Lost where one does not come up and may not be replaced."""
        while waiting := {w.name: w for w in self.workers if w.health.state is State.RESTARTING}:
            refs = {name: w.starting for name, w in waiting.items()}
            done, lost = gather(refs, "start", self.deadlines.start)
            self._note_starts(done, lost)

    def poll_starts(self) -> None:
        """Note which workers have finished starting since the last call."""
        if waiting := {w.name: w.starting for w in self.workers if w.health.state is State.RESTARTING}:
            self._note_starts(*poll(waiting, "start", 0.0))

    def lose(self, worker: Worker, loss: Lost) -> None:
        """Kill what is left of a worker's process and start another."""
        import ray

        worker.health.mark_dead()
        ray.kill(worker.handle)
        self.on_loss(loss)
        worker.handle, worker.starting = self.launch(self.workers.index(worker))
        worker.health.mark_restarting()

    def in_state(self, *states: State) -> list[Worker]:
        """The workers in one of these states."""
        return [worker for worker in self.workers if worker.health.state in states]

    def peak_memory(self) -> int:
        """Largest peak memory of a worker so far, in bytes. One that does not answer is left to whom it concerns."""
        refs = {w.name: w.handle.memory.remote() for w in self.in_state(State.HEALTHY, State.STALE)}
        if refs:
            done, _ = gather(refs, "memory", self.deadlines.heartbeat)
            self.memory = max(self.memory, *done.values()) if done else self.memory
        return self.memory

    def close(self) -> None:
        """End the processes."""
        import ray

        for worker in self.workers:
            ray.kill(worker.handle)

    def _join(self) -> None:
        index = len(self.workers)
        handle, starting = self.launch(index)
        self.workers.append(Worker(f"rollout {index}", handle, starting, Health(self.deadlines.heartbeat)))

    def _note_starts(self, done: dict[str, Any], lost: dict[str, Lost]) -> None:
        for worker in self.workers:
            if worker.name in done:
                worker.health.on_started()
            elif worker.name in lost:
                self.lose(worker, lost[worker.name])


def _refuse(loss: Lost) -> None:
    raise loss
