"""Watchdog: the last resort against a hang. Without progress, every process dumps its stacks and the run stops."""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from quadriga.data.errors import Fault


class Watchdog:
    """A thread that stops the run when no answer, optimizer step or checkpoint was finished for `limit` seconds.

    dump: called first, to write the stacks of all processes. Then a Fault is raised in the main thread, wherever it is.
    If that thread does not react to the signal for `patience` seconds, `give_up` is called with the reason; it must not
    return.
    """

    def __init__(self, limit: float, dump: Callable[[], None], give_up: Callable[[str], None], patience: float = 30.0):
        self._limit, self._dump, self._give_up, self._patience = limit, dump, give_up, patience
        self._last, self._doing = time.monotonic(), "start"
        self._over = threading.Event()

    def moved(self, doing: str) -> None:
        """Record progress: something was finished or begins. doing: the phase that follows."""
        self._last, self._doing = time.monotonic(), doing

    @contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Watch during the block, which must be entered on the main thread."""
        before = signal.signal(signal.SIGALRM, self._interrupt)
        self._last = time.monotonic()
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()
            signal.signal(signal.SIGALRM, before)

    @property
    def fault(self) -> Fault:
        """The Fault that names the limit and the phase that hangs."""
        return Fault(
            f"no answer, optimizer step or checkpoint was finished for {self._limit:.0f} s "
            "(cluster.deadlines.progress). What every process was doing is at the end of its log.",
            phase=self._doing,
        )

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit / 4)):
            if time.monotonic() - self._last > self._limit:
                self._dump()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                if not self._over.wait(self._patience):
                    self._give_up(str(self.fault))
                return

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        raise self.fault


def dump_stacks(path: Path, processes: Iterable[tuple[str, int]]) -> None:
    """Append the driver's stacks to `path`, and have every other process write its stacks into its own log.

    processes: (Ray's node id, process id). One Ray task per node sends the signal that actors/runtime/process.py
    handles; a node that is gone is left out.
    """
    with path.open("a") as file:
        file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    pids: dict[str, list[int]] = {}
    for node, pid in processes:
        pids.setdefault(node, []).append(pid)
    refs: list[Any] = []
    import ray

    own = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
    for node, members in pids.items():
        if node == own:
            _signal(members)
        else:
            refs.append(_signal_on(node, members))
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=10.0)


def _signal(processes: list[int]) -> None:
    for pid in processes:
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            continue


def _signal_on(node: str, processes: list[int]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_signal).options(num_cpus=0, scheduling_strategy=strategy).remote(processes)
