"""Commands for running runs: jobs, logs, stop, scale."""

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
LocalOrRemoteRun = Annotated[
    str, typer.Argument(metavar="RUN", help="Run directory on this machine, or name of a run on a cluster.")
]


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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run ends.")] = False,
) -> None:
    """Print the output of a run's newest attempt.

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
    run: LocalOrRemoteRun,
    address: Address = None,
    now: Annotated[
        bool, typer.Option("--now", help="Kill the job at once; steps since the last checkpoint are lost.")
    ] = False,
) -> None:
    """Stop a run cleanly: it finishes its current step, saves a checkpoint and exits.

    Examples:

      quadriga stop runs/assistant

      quadriga stop helpful-8b --address http://head:8265
    """
    from quadriga.data.rundir import RunDir
    from quadriga.launch.jobs.control import stop_here, stop_job

    console = Console(stderr=True, highlight=False)
    if address is None and (Path(run) / "run.json").is_file():
        if now:
            raise UserError("--now is for jobs. To end a run on this machine at once, press Ctrl-C twice.")
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
        console.print(f"Job {job.submission_id} was killed.", markup=False)
        return
    with console.status(f"{run} finishes its step and saves"):
        job = stop_job(client, job)
    console.print(f"{run} is {state(job)}. Submit it again to resume.", markup=False)


def scale(
    run: LocalOrRemoteRun,
    workers: Annotated[str, typer.Argument(metavar="rollout=N", help="New number of rollout workers.")],
    address: Address = None,
) -> None:
    """Change the number of rollout workers of a running run.

    The change takes effect at the next step; a new worker serves once it holds the current weights. The run's results
    stay the same.

    Examples:

      quadriga scale runs/assistant rollout=2

      quadriga scale helpful-8b rollout=6 --address http://head:8265
    """
    from quadriga.data.rundir import RunDir
    from quadriga.launch.jobs.control import scale_here, scale_job, workers_of

    count = workers_of(workers)
    if address is None and (Path(run) / "run.json").is_file():
        scale_here(RunDir(run), count)
    else:
        from quadriga.launch.jobs.client import connect, newest

        client = connect(address)
        scale_job(client, newest(client, run), count)
    console = Console(stderr=True, highlight=False)
    console.print(f"{run} will have {count} rollout workers from its next step on.", markup=False)


def follow_job(client: Any, job: str, address: str | None) -> int:
    """Print the log of a job until it ends, and return its exit code; Ctrl-C leaves the job running."""
    from quadriga.launch.jobs.logs import follow

    try:
        return follow(client, job)
    except KeyboardInterrupt:
        command = ["quadriga logs", job.rpartition("-")[0], *([f"--address {address}"] if address else []), "--follow"]
        message = f"\nThe run continues. Follow it again with: {' '.join(command)}"
        Console(stderr=True).print(message, highlight=False, markup=False)
        return 130
