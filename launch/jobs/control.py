"""Control of a running run through request files in its directory: stop it cleanly, or change its rollout workers.

Run as a module, this file stops a run on a node, on behalf of a job: `python -m quadriga.launch.jobs.control RUN_DIR`.
"""

import re
import sys
import time
from pathlib import Path
from typing import Any

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.jobs.client import ENDED, RUN_DIR, submit_alongside

POLL_SECONDS = 0.5
START_SECONDS = 600.0
"""Longest time from when Ray calls a job running until its run holds the run directory."""


def stop_here(run: RunDir) -> str:
    """Stop the run in a directory on this machine, wait for its end, and return its last status.

    Raises UserError when nothing is running there.
    """
    if not run.in_use():
        status = run.read_run().get("status")
        raise UserError(f"Nothing is running in {run.path}" + (f": it is {status}." if status else "."))
    _request_stop_until_end(run, 0)
    return str(run.read_run().get("status"))


def stop_job(client: Any, job: Any) -> Any:
    """Stop the run of a job, wait for its end, and return the job's last details.

    Ray's own `stop_job` kills after 3 s. A second job therefore writes the request into the run directory, which
    perhaps only the nodes see; it uses the first one's packages and no resources. A job that has not
    started is removed. Raises Fault when the second job fails.
    """
    if job.status == "PENDING":
        client.stop_job(job.submission_id)
        return _wait_for_end(client, job.submission_id)
    requester = submit_alongside(client, job, ["-m", "quadriga.launch.jobs.control", job.metadata[RUN_DIR]])
    try:
        return _wait_for_end(client, job.submission_id, requester)
    finally:
        client.stop_job(requester)


def workers_of(text: str) -> int:
    """Return 6 for `rollout=6`. Raises UserError for anything else: only rollout workers can be added and removed."""
    match = re.fullmatch(r"rollout=(\d+)", text)
    if match is None or int(match[1]) < 1:
        raise UserError(
            f"`{text}` cannot be changed while a run is running: write rollout=N with N at least 1. The ranks of a "
            "model are fixed; stop the run, change cluster.<role>.ranks, and run it again."
        )
    return int(match[1])


def scale_here(run: RunDir, workers: int) -> None:
    """Request this number of rollout workers from the run in a directory on this machine.

    Raises UserError when nothing is running there. A run without rollout workers ignores the request.
    """
    if not run.in_use():
        raise UserError(f"Nothing is running in {run.path}: set cluster.rollout.workers when you run it again.")
    run.request("rollout", workers)


def scale_job(client: Any, job: Any, workers: int) -> None:
    """Request this number of rollout workers from the run of a job, through a second job that sees its directory.

    Raises Fault when the second job fails.
    """
    words = ["-m", "quadriga.launch", "scale", job.metadata[RUN_DIR], f"rollout={workers}"]
    requester = submit_alongside(client, job, words)
    while (status := client.get_job_status(requester)) not in ENDED:
        time.sleep(POLL_SECONDS)
    if status != "SUCCEEDED":
        raise Fault(f"The request could not be delivered to the run: {client.get_job_logs(requester).strip()}")


def _wait_for_end(client: Any, job_id: str, requester: str | None = None) -> Any:
    while (job := client.get_job_info(job_id)).status not in ENDED:
        if requester is not None and client.get_job_status(requester) == "FAILED":
            raise Fault(f"The run could not be asked to stop: {client.get_job_logs(requester).strip()}")
        time.sleep(POLL_SECONDS)
    return job


def _request_stop_until_end(run: RunDir, start_seconds: float) -> None:
    """Request a stop until the run has ended. Repeat the request: a run that starts deletes those made before."""
    started, deadline = False, time.monotonic() + start_seconds
    while (in_use := run.in_use()) or (not started and time.monotonic() < deadline):
        started |= in_use
        if run.path.is_dir() and run.requested("stop") is None:
            run.request("stop")
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    _request_stop_until_end(RunDir(Path(sys.argv[1])), START_SECONDS)
