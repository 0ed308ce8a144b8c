"""Waiting for remote calls: every wait has a phase, a deadline and heartbeats, and names lost processes."""

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from quadriga.data.errors import Fault, Lost, ProcessDied, Repeating, UserError

HEARTBEAT_INTERVAL = 5.0
"""Seconds without a result after which the processes waited for are asked for a heartbeat."""
GRACE_SECONDS = 5.0
"""Seconds to wait for a death that explains a failed call: peers of a dead rank fail before Ray reports its death."""

SAVES_AND_LOADS = ("start", "checkpoint", "export", "resume")
"""Phases that do the same each time: an error of the code in them comes again."""
DETERMINISTIC = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NameError,
    ImportError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
)
_EXTERNAL = re.compile(r"gloo|nccl|c10d|mpi|socket|connect|peer|pipe|time|rank|cuda|device|memory|thread|fork", re.I)
_TAKEN = re.compile(r"\b(free memory|out of memory|address|port)\b", re.I)
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def wait_all(
    refs: Mapping[str, Any],
    phase: str,
    limit: float,
    actors: Mapping[str, Any] | None = None,
    heartbeat: float | None = None,
) -> dict[str, Any]:
    """Return the results of remote calls by name; refs: name, such as "actor 0", -> reference.

    limit: seconds for all of them together. actors: handles by name; one that does not answer heartbeats for
    `heartbeat` seconds is lost, however much of the limit is left.
    Raises Lost, of several losses the one that explains the others, if a process died, failed or was late; a Fault or
    UserError raised remotely is raised unchanged. Raises Fault in place of a `Repeating` loss.
    """
    results, lost = gather(refs, phase, limit, actors, heartbeat, first=True)
    if lost:
        cause = _cause(lost, {name: ref for name, ref in refs.items() if name not in results | lost}, phase)
        raise cause.as_fault() if isinstance(cause, Repeating) else cause
    return {name: results[name] for name in refs}


def gather(
    refs: Mapping[str, Any],
    phase: str,
    limit: float,
    actors: Mapping[str, Any] | None = None,
    heartbeat: float | None = None,
    first: bool = False,
) -> tuple[dict[str, Any], dict[str, Lost]]:
    """Return (results, losses) by name, as `wait_all` without raising Lost; with `first`, up to the first loss."""
    heartbeats = Heartbeats(actors or {}, phase, heartbeat)
    pending, end = dict(refs), time.monotonic() + limit
    beat = min(HEARTBEAT_INTERVAL, (heartbeat or HEARTBEAT_INTERVAL) / 3)
    results: dict[str, Any] = {}
    lost: dict[str, Lost] = {}
    while pending and not (lost and first):
        left = end - time.monotonic()
        done, gone = poll(pending, phase, max(0.0, min(left, beat)))
        if not done and not gone:
            gone = heartbeats.silent(pending)
            if not gone and left <= 0:
                message = f"no answer from {', '.join(pending)} within {limit:.0f} s"
                gone = {name: Lost(message, phase=phase, process=name) for name in pending}
        results |= done
        lost |= gone
        pending = {name: ref for name, ref in pending.items() if name not in results and name not in lost}
    return results, lost


def poll(refs: Mapping[str, Any], phase: str, timeout: float) -> tuple[dict[str, Any], dict[str, Lost]]:
    """Return (results, losses) by name of the calls that have ended, waiting up to `timeout` seconds for the first.

    Raises a Fault or UserError that was raised remotely.
    """
    import ray

    names = {ref: name for name, ref in refs.items()}
    ready, _ = ray.wait(list(names), num_returns=1, timeout=timeout)
    if ready:  # and all others that have ended by now
        ready, _ = ray.wait(list(names), num_returns=len(names), timeout=0)
    results: dict[str, Any] = {}
    losses: dict[str, Lost] = {}
    for ref in ready:
        name = names[ref]
        try:
            results[name] = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError | Fault):
                raise cause from error
            losses[name] = _failure(name, phase, cause, str(error))
        except ray.exceptions.RayActorError as error:
            losses[name] = ProcessDied(f"{name} died: {_first_line(error)}", phase=phase, process=name)
    return results, losses


class Heartbeats:
    """Heartbeats of processes: one that computes still answers, on a separate thread; a stopped one does not.

    limit: seconds without an answer after which a process is lost; None asks for no heartbeats.
    """

    def __init__(self, actors: Mapping[str, Any], phase: str, limit: float | None):
        self._actors, self._phase, self._limit = actors, phase, limit
        self._requested: dict[str, tuple[Any, float]] = {}

    def silent(self, names: Iterable[str]) -> dict[str, Lost]:
        """Request a heartbeat of each process; return losses for those whose answer is overdue."""
        import ray

        lost: dict[str, Lost] = {}
        if self._limit is None:
            return lost
        for name in names:
            if name not in self._actors:
                continue
            ref, since = self._requested.get(name) or (request_heartbeat(self._actors[name]), time.monotonic())
            self._requested[name] = ref, since
            if ray.wait([ref], timeout=0)[0]:
                del self._requested[name]  # alive, or dead: then the call itself says so
            elif time.monotonic() - since > self._limit:
                message = f"{name} shows no sign of life for {self._limit:.0f} s (stopped, or cut off)"
                lost[name] = Lost(message, phase=self._phase, process=name)
        return lost


def _failure(name: str, phase: str, cause: BaseException, traceback: str) -> Lost:
    """Return the loss that an exception in a process stands for. traceback: the remote one, as text."""
    message = f"{name} failed: {type(cause).__name__}: {cause}"
    if phase not in SAVES_AND_LOADS or not repeats(cause):
        return Lost(message, phase=phase, process=name)
    places = _PLACE.findall(traceback)
    if places:
        file, line, function = places[-1]
        message += f" (in {function}, {'/'.join(file.split('/')[-3:])}, line {line})"
    return Repeating(message, phase=phase, process=name)


def repeats(error: BaseException) -> bool:
    """Return whether the same call would raise the same error again: a mistake in code or input, nothing external.

    A RuntimeError may be one, unless it speaks of a connection or a device: torch raises it for those too. What speaks
    of memory or an address may pass when a dead process has left them.
    """
    if isinstance(error, DETERMINISTIC):
        return not _TAKEN.search(str(error))
    return type(error) is RuntimeError and not _EXTERNAL.search(str(error))


def request_heartbeat(actor: Any) -> Any:
    """Request a heartbeat of a `remote_process`; return the reference of its answer."""
    return actor.heartbeat.options(concurrency_group="heartbeat").remote()


def _cause(lost: dict[str, Lost], others: Mapping[str, Any], phase: str) -> Lost:
    """Return the loss that explains the others: a process that died, else the first that failed."""
    end = time.monotonic() + GRACE_SECONDS
    while not any(isinstance(loss, ProcessDied) for loss in lost.values()) and others and time.monotonic() < end:
        done, more = poll(others, phase, max(0.0, end - time.monotonic()))
        lost |= more
        others = {name: ref for name, ref in others.items() if name not in done | more}
    return next((loss for loss in lost.values() if isinstance(loss, ProcessDied)), next(iter(lost.values())))


def _first_line(error: Exception) -> str:
    """Return Ray's first line and how the process ended or, if it never started, the error that ended it."""
    message = str(error).partition("Some common causes")[0]
    first, *more = [line.strip() for line in message.splitlines() if line.strip()] or [type(error).__name__]
    return " ".join([first, *([line for line in more if "exit" in line.lower()] or more[-1:])[:1]])
