"""The commands that bring a run to a cluster: launch, submit, down."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.cli.jobs import follow_job
from quadriga.launch.cli.options import Address, Config, Overrides, Shared, WorkingDir, load_with_hosts


def launch(
    config: Config,
    overrides: Overrides = None,
    working_dir: WorkingDir = None,
    shared: Shared = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the files for Slurm or Kubernetes go.", show_default="RUN_DIR/launch"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every command and file, and start nothing.")
    ] = False,
) -> None:
    """Bring up the cluster that the config's [bold]cluster:[/bold] section asks for, run on it, end it again.

    [bold]ssh[/bold]: all hosts are checked, Ray is started on them, the run is a job on the first.
    Switch this machine off and it goes on; launch it again and you follow it again.

    [bold]slurm[/bold], [bold]kubernetes[/bold]: the job's files are written and submitted.

    Without a launcher in that section the run is here, as with [bold]quadriga run[/bold].

    Examples:

      quadriga launch my-ppo.yaml cluster=clusters/ssh-example run_dir=/shared/runs/ppo

      quadriga launch my-ppo.yaml cluster=clusters/ssh-example run_dir=/shared/runs/ppo --dry-run
    """
    from quadriga.launch.config.load import load_config

    stage = load_config(config, overrides or [])
    cluster, console, out = stage.cluster, Console(stderr=True), Console()
    folder = to or Path(stage.run_dir or f"runs/{stage.name}") / "launch"
    if cluster.slurm is not None:
        from quadriga.launch.batch.slurm import launch_slurm

        raise typer.Exit(launch_slurm(stage, out, dry_run, folder))
    if cluster.kubernetes is not None:
        from quadriga.launch.batch.kubernetes import launch_kubernetes

        raise typer.Exit(launch_kubernetes(stage, out, dry_run, folder))
    if cluster.ssh is not None and dry_run:
        from quadriga.launch.ssh.cluster import rehearse

        rehearse(stage, out)
    elif cluster.ssh is not None:
        from quadriga.launch.ssh.cluster import launch as launch_over_ssh

        raise typer.Exit(launch_over_ssh(stage, config, overrides or [], working_dir, shared or [], console))
    elif dry_run:
        out.print(shlex.join(["quadriga", "run", str(config), *(overrides or [])]), highlight=False, markup=False)
    else:
        from quadriga.launch.cli.train import run

        run(config, overrides)


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
    from quadriga.launch.jobs.submit import DriverResources, JobPackage
    from quadriga.launch.jobs.submit import submit as send

    client = connect(address)
    package = JobPackage(working_dir, shared or [], env or [], secret or [], secrets_file)
    needs = DriverResources(num_cpus, num_gpus, _resources(resources))
    job = send(client, config, overrides or [], package, needs, allow_changed or [])
    Console(stderr=True).print(f"Submitted as job {job}.", highlight=False, markup=False)
    if follow:
        raise typer.Exit(follow_job(client, job, address))


def down(config: Config, overrides: Overrides = None) -> None:
    """End what [bold]quadriga launch[/bold] started on the hosts of a config, and nothing else.

    A run that is on them is killed; [bold]quadriga launch[/bold] goes on from its newest checkpoint.

    Example:

      quadriga down my-ppo.yaml cluster=clusters/ssh-example
    """
    from quadriga.launch.ssh.cluster import bring_down

    stage, console = load_with_hosts(config, overrides), Console(stderr=True)
    with console.status("Ending Ray on the hosts"):
        ended = bring_down(stage.name, stage.cluster.ssh, console)
    console.print(f"{ended} processes were ended on {len(stage.cluster.ssh.hosts)} hosts.", highlight=False)


def _resources(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
        return {str(name): float(amount) for name, amount in found.items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"--resources takes JSON such as '{{\"trainer\": 1}}', not {text}.") from None
