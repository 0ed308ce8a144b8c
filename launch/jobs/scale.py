"""Changing how many rollout workers a run has while it goes on: a request in its directory, looked at every step."""

import re
import time
from typing import Any

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.jobs.client import ENDED, RUN_DIR, beside

LOOK_EVERY = 0.5


def workers_of(text: str) -> int:
    """`rollout=6` -> 6. Raises UserError for anything else: only rollout workers come and go."""
    match = re.fullmatch(r"rollout=(\d+)", text)
    if match is None or int(match[1]) < 1:
        raise UserError(
            f"`{text}` cannot be done while a run goes on: write rollout=N with N at least 1. The ranks of a model are "
            "fixed; stop the run, change cluster.<role>.ranks, and run it again."
        )
    return int(match[1])


def scale_here(run: RunDir, workers: int) -> None:
    """Ask the run in a directory on this machine. Raises UserError when nothing runs there, or it samples nothing."""
    if not run.in_use():
        raise UserError(f"Nothing is running in {run.path}: set cluster.rollout.workers when you run it again.")
    run.request("rollout", workers)


def scale_job(client: Any, job: Any, workers: int) -> None:
    """Ask the run of a job, through a second job that sees its directory. Raises Fault when that fails."""
    asking = beside(client, job, ["-m", "quadriga.launch", "scale", job.metadata[RUN_DIR], f"rollout={workers}"])
    while (status := client.get_job_status(asking)) not in ENDED:
        time.sleep(LOOK_EVERY)
    if status != "SUCCEEDED":
        raise Fault(f"The run could not be asked: {client.get_job_logs(asking).strip()}")
