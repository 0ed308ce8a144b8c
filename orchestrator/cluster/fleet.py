"""Fleet: the rollout workers' processes with their handles and health; it replaces each one that is lost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quadriga.actors.runtime.remote_calls import gather, poll
from quadriga.actors.settings import DeadlineSettings
from quadriga.data.errors import Lost, Repeating
from quadriga.orchestrator.cluster.health import Health, State


@dataclass
class Worker:
    """One place in the fleet and the process that holds it now. starting: reference of that process's start call."""

    name: str
    handle: Any
    starting: Any
    health: Health


@dataclass
class Fleet:
    """The rollout workers of a run: starts them, changes their number, and replaces lost ones.

    launch: index -> (handle, reference of its start call). release: called with the index of a worker that is not
    replaced. on_loss: called with every loss before the replacement starts; it raises to stop the run instead (the
    default tolerates no loss). memory: the largest peak memory seen so far, in bytes.
    """

    launch: Callable[[int], tuple[Any, Any]]
    count: int
    deadlines: DeadlineSettings
    release: Callable[[int], None] = field(default=lambda index: None)
    on_loss: Callable[[Lost], None] = field(default=lambda loss: _refuse(loss))
    workers: list[Worker] = field(default_factory=list)
    memory: int = 0

    def start(self) -> None:
        """Create all processes without waiting for them; `await_start` does that."""
        for _ in range(self.count):
            self._join()

    def resize(self, count: int) -> None:
        """Change the number of workers. New ones serve once they are up; the last ones end at once and must be idle."""
        import ray

        while len(self.workers) < count:
            self._join()
        for worker in self.workers[count:]:
            ray.kill(worker.handle)
            self.release(self.workers.index(worker))
        del self.workers[count:]
        self.count = count

    def await_start(self) -> None:
        """Wait until every worker is up. Raises Lost if one fails to start and may not be replaced."""
        while waiting := {w.name: w for w in self.workers if w.health.state is State.RESTARTING}:
            refs = {name: w.starting for name, w in waiting.items()}
            done, lost = gather(refs, "start", self.deadlines.start)
            self._note_starts(done, lost)

    def poll_starts(self) -> None:
        """Record which workers have finished starting since the last call."""
        if waiting := {w.name: w.starting for w in self.workers if w.health.state is State.RESTARTING}:
            self._note_starts(*poll(waiting, "start", 0.0))

    def lose(self, worker: Worker, loss: Lost) -> None:
        """Report a loss, kill what is left of the worker's process, and start another in its place."""
        import ray

        worker.health.mark_dead()
        ray.kill(worker.handle)
        self.on_loss(loss)
        worker.handle, worker.starting = self.launch(self.workers.index(worker))
        worker.health.mark_restarting()

    def in_state(self, *states: State) -> list[Worker]:
        """Return the workers that are in one of these states."""
        return [worker for worker in self.workers if worker.health.state in states]

    def peak_memory(self) -> int:
        """Return the largest peak memory of a worker so far, in bytes. A worker that does not answer is left out."""
        refs = {w.name: w.handle.memory.remote() for w in self.in_state(State.HEALTHY, State.STALE)}
        if refs:
            done, _ = gather(refs, "memory", self.deadlines.heartbeat)
            self.memory = max(self.memory, *done.values()) if done else self.memory
        return self.memory

    def close(self) -> None:
        """Kill the processes."""
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
                if isinstance(loss := lost[worker.name], Repeating):
                    raise loss.as_fault()
                self.lose(worker, loss)


def _refuse(loss: Lost) -> None:
    raise loss
