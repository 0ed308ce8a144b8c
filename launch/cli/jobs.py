"""The commands for runs that are under way: jobs, logs, stop, scale."""

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quadriga.data.errors import UserError
from quadriga.launch.cli.options import Address

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run on the cluster.")]


def jobs(address: Address = None) -> None:
    """List the runs on a cluster, newest last.

    Example:

      quadriga jobs --address http://head:8265
    """
    from quadriga.launch.jobs.client import RUN, attempts, connect, state
    from quadriga.orchestrator.tracking.console import duration, make_console

    table = Table("run", "job", "status", "started")
    table.add_column("duration", justify="right")
    for job in attempts(connect(address)):
        began = (job.start_time or 0) / 1000
        took = (job.end_time / 1000 if job.end_time else time.time()) - began
        started = datetime.fromtimestamp(began).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(job.metadata[RUN], job.submission_id, state(job), started, duration(took))
    make_console().print(table if table.row_count else "No run was submitted to this cluster.")


def logs(
    run: Run,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False,
) -> None:
    """Show what a run has printed: its newest attempt. The run does not notice.

    Examples:

      quadriga logs helpful-8b --address http://head:8265

      quadriga logs helpful-8b --follow
    """
    from quadriga.launch.jobs.client import connect, newest

    client = connect(address)
    job = newest(client, run)
    if follow:
        raise typer.Exit(follow_job(client, job.submission_id, address))
    print(client.get_job_logs(job.submission_id), end="")


def stop(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory here, or the name of a run on a cluster.")],
    address: Address = None,
    now: Annotated[bool, typer.Option("--now", help="Kill a job; what was not saved is lost.")] = False,
) -> None:
    """End a run cleanly: it finishes the step it is in, saves and exits.

    Examples:

      quadriga stop runs/assistant

      quadriga stop helpful-8b --address http://head:8265
    """
    from quadriga.data.rundir import RunDir
    from quadriga.launch.jobs.stop import stop_here, stop_job

    console = Console(stderr=True, highlight=False)
    if address is None and (Path(run) / "run.json").is_file():
        if now:
            raise UserError("--now is for jobs. A run on this machine ends at once with a second Ctrl-C.")
        with console.status(f"{run} finishes its step and saves"):
            console.print(f"{run} is {stop_here(RunDir(run))}.", markup=False)
        return
    from quadriga.launch.jobs.client import ENDED, connect, newest, state

    client = connect(address)
    job = newest(client, run)
    if job.status in ENDED:
        raise UserError(f"The run `{run}` is not running: job {job.submission_id} is {state(job)}.")
    if now:
        client.stop_job(job.submission_id)
        console.print(f"Job {job.submission_id} is killed.", markup=False)
        return
    with console.status(f"{run} finishes its step and saves"):
        job = stop_job(client, job)
    console.print(f"{run} is {state(job)}. Submitted again, it goes on.", markup=False)


def scale(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory here, or the name of a run on a cluster.")],
    workers: Annotated[str, typer.Argument(metavar="rollout=N", help="Rollout workers to have.")],
    address: Address = None,
) -> None:
    """Change how many rollout workers a run has, while it goes on.

    From its next step on; a newcomer serves when it holds the current weights. What is computed stays the same.

    Examples:

      quadriga scale runs/assistant rollout=2

      quadriga scale helpful-8b rollout=6 --address http://head:8265
    """
    from quadriga.data.rundir import RunDir
    from quadriga.launch.jobs.scale import scale_here, scale_job, workers_of

    count = workers_of(workers)
    if address is None and (Path(run) / "run.json").is_file():
        scale_here(RunDir(run), count)
    else:
        from quadriga.launch.jobs.client import connect, newest

        client = connect(address)
        scale_job(client, newest(client, run), count)
    console = Console(stderr=True, highlight=False)
    console.print(f"{run} has {count} rollout workers from its next step on.", markup=False)


def follow_job(client: Any, job: str, address: str | None) -> int:
    """Print the log of a job until it ends; Ctrl-C leaves it running. Returns the exit code."""
    from quadriga.launch.jobs.logs import follow

    try:
        return follow(client, job)
    except KeyboardInterrupt:
        words = ["quadriga logs", job.rpartition("-")[0], *([f"--address {address}"] if address else []), "--follow"]
        message = f"\nThe run goes on. See more of it with: {' '.join(words)}"
        Console(stderr=True).print(message, highlight=False, markup=False)
        return 130
