"""Ending a run cleanly: it finishes the step it is in, saves and exits.

Run as a module, this file does that on a node, for a job: `python -m quadriga.launch.jobs.stop RUN_DIR`.
"""

import sys
import time
from pathlib import Path
from typing import Any

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.jobs.client import ENDED, RUN_DIR, beside

LOOK_EVERY = 0.5
BEGIN_SECONDS = 600.0
"""How long a job that Ray calls running may take until it holds its run directory."""


def stop_here(run: RunDir) -> str:
    """Stop the run in a directory on this machine; returns the status it ended with.

    Raises UserError when nothing is running there.
    """
    if not run.in_use():
        status = run.read_run().get("status")
        raise UserError(f"Nothing is running in {run.path}" + (f": it is {status}." if status else "."))
    _ask_until_it_ends(run, 0)
    return str(run.read_run().get("status"))


def stop_job(client: Any, job: Any) -> Any:
    """Stop the run of a job, and return the job as it is then.

    Ray's own `stop_job` kills after 3 s. So a second job asks, by a file in the run directory, which only the nodes
    may see; it needs what the first one brought along and no resources. A job that has not started is just removed.
    Raises Fault when the asking fails.
    """
    if job.status == "PENDING":
        client.stop_job(job.submission_id)
        return _ended(client, job.submission_id)
    asking = beside(client, job, ["-m", "quadriga.launch.jobs.stop", job.metadata[RUN_DIR]])
    try:
        return _ended(client, job.submission_id, asking)
    finally:
        client.stop_job(asking)


def _ended(client: Any, job_id: str, asking: str | None = None) -> Any:
    while (job := client.get_job_info(job_id)).status not in ENDED:
        if asking is not None and client.get_job_status(asking) == "FAILED":
            raise Fault(f"The run could not be asked to stop: {client.get_job_logs(asking).strip()}")
        time.sleep(LOOK_EVERY)
    return job


def _ask_until_it_ends(run: RunDir, begin_seconds: float) -> None:
    """Keep the request there: a run forgets, as it begins, what was asked of the one before."""
    seen, deadline = False, time.monotonic() + begin_seconds
    while (held := run.in_use()) or (not seen and time.monotonic() < deadline):
        seen |= held
        if run.path.is_dir() and run.requested("stop") is None:
            run.request("stop")
        time.sleep(LOOK_EVERY)


if __name__ == "__main__":
    _ask_until_it_ends(RunDir(Path(sys.argv[1])), BEGIN_SECONDS)
