"""The one function that waits for remote work: it knows the phase, who is waited for, and for how long."""

import time
from typing import Any

from quadriga.data.errors import Fault, UserError


def wait_all(refs: dict[str, Any], phase: str, limit: float) -> dict[str, Any]:
    """Results of remote calls by name ("actor 0" -> reference), or the first failure as a Fault that names its caller.

    limit: seconds for all of them together. A UserError raised remotely stays one.
    """
    import ray

    names = {ref: name for name, ref in refs.items()}
    pending, end, results = list(refs.values()), time.monotonic() + limit, {}
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            late = ", ".join(names[ref] for ref in pending)
            raise Fault(f"{phase}: no answer from {late} within {limit:.0f} s", phase, late)
        for ref in ready:
            results[names[ref]] = _result(ref, names[ref], phase)
    return {name: results[name] for name in refs}


def _result(ref: Any, name: str, phase: str) -> Any:
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | Fault):
            raise cause from error
        raise Fault(f"{phase}: {name} failed: {type(cause).__name__}: {cause}", phase, name) from error
    except ray.exceptions.RayActorError as error:
        raise Fault(f"{phase}: {name} died: {_first_line(error)}", phase, name) from error


def _first_line(error: Exception) -> str:
    """Ray's first line, and how the process ended or, where it never started, the error that ended it."""
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join([first, *([line for line in more if "exit" in line.lower()] or more[-1:])[:1]])
