"""The commands for runs on a Ray cluster, as its jobs: submit, jobs, logs, stop."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quadriga.data.errors import UserError
from quadriga.launch.cli.options import Config, Overrides, Shared, WorkingDir

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Dashboard of the cluster's head.",
        show_default="RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265",
    ),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run on the cluster.")]


def submit(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="Show the run's log until it ends.")] = True,
    working_dir: WorkingDir = None,
    shared: Shared = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Give the run this variable of yours; no secrets. May be given again."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A variable that must be set on the node. May be given again."),
    ] = None,
    secrets_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="On the nodes: NAME=value lines, for --secret.", show_default=False),
    ] = None,
    num_cpus: Annotated[float, typer.Option(min=0, help="Cores to reserve for the driver.")] = 0,
    num_gpus: Annotated[float, typer.Option(min=0, help="GPUs to reserve for the driver; it needs none.")] = 0,
    resources: Annotated[str, typer.Option(metavar="JSON", help="Ray resources to reserve for the driver.")] = "{}",
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Go on though this setting changed. May be given again.", show_default=False),
    ] = None,
) -> None:
    """Send a run to a Ray cluster. It brings Quadriga along and goes on when this machine is switched off.

    Files that the config names are sent too when they are on this machine (100 MB at most); larger ones belong on
    storage that every node sees, as does [bold]run_dir[/bold]. Submit it again and it goes on where it stopped.

    Examples:

      quadriga submit my-ppo.yaml run_dir=/shared/runs/ppo --address http://head:8265

      quadriga submit my-ppo.yaml --working-dir . --secret WANDB_API_KEY --secrets-file /shared/me/secrets

      quadriga submit my-ppo.yaml total_steps=200 --allow-changed total_steps --no-follow
    """
    from quadriga.launch.jobs.client import connect
    from quadriga.launch.jobs.submit import Needs, Parcel
    from quadriga.launch.jobs.submit import submit as send

    client = connect(address)
    parcel = Parcel(working_dir, shared or [], env or [], secret or [], secrets_file)
    needs = Needs(num_cpus, num_gpus, _resources(resources))
    job = send(client, config, overrides or [], parcel, needs, allow_changed or [])
    Console(stderr=True).print(f"Submitted as job {job}.", highlight=False, markup=False)
    if follow:
        raise typer.Exit(_follow(client, job, address))


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
        raise typer.Exit(_follow(client, job.submission_id, address))
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


def _follow(client: Any, job: str, address: str | None) -> int:
    from quadriga.launch.jobs.logs import follow

    try:
        return follow(client, job)
    except KeyboardInterrupt:
        words = ["quadriga logs", job.rpartition("-")[0], *([f"--address {address}"] if address else []), "--follow"]
        message = f"\nThe run goes on. See more of it with: {' '.join(words)}"
        Console(stderr=True).print(message, highlight=False, markup=False)
        return 130


def _resources(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
        return {str(name): float(amount) for name, amount in found.items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"--resources takes JSON such as '{{\"trainer\": 1}}', not {text}.") from None
