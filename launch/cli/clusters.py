"""Commands that start a run on a cluster or end its cluster: launch, submit, down."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.cli.jobs import follow_job
from quadriga.launch.cli.options import Address, AllowChanged, Config, Overrides, Shared, WorkingDir, load_with_hosts


def launch(
    config: Config,
    overrides: Overrides = None,
    working_dir: WorkingDir = None,
    shared: Shared = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for the files of Slurm or Kubernetes.", show_default="RUN_DIR/launch"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every command and file without starting anything.")
    ] = False,
) -> None:
    """Start the cluster of the config's [bold]cluster:[/bold] section, run on it, and end it afterwards.

    [bold]ssh[/bold]: checks all hosts, starts Ray on them and submits the run as a job to the first one.
    The run continues when this machine is switched off; launch it again to follow it again.

    [bold]slurm[/bold], [bold]kubernetes[/bold]: writes the job's files and submits them.

    Without any of these sections the run is on this machine, as with [bold]quadriga run[/bold].

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
        from quadriga.launch.ssh.cluster import print_dry_run

        print_dry_run(stage, out)
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
    follow: Annotated[bool, typer.Option(help="Print the run's log until it ends.")] = True,
    working_dir: WorkingDir = None,
    shared: Shared = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Environment variable to send; not for secrets. Repeatable."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Variable that must be set on the node. Repeatable."),
    ] = None,
    secrets_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File on the nodes with NAME=value lines for --secret.", show_default=False),
    ] = None,
    num_cpus: Annotated[float, typer.Option(min=0, help="Cores to reserve for the driver.")] = 0,
    num_gpus: Annotated[float, typer.Option(min=0, help="GPUs to reserve for the driver, which needs none.")] = 0,
    resources: Annotated[str, typer.Option(metavar="JSON", help="Ray resources to reserve for the driver.")] = "{}",
    allow_changed: AllowChanged = None,
) -> None:
    """Submit a run to a Ray cluster, together with Quadriga. It continues when this machine is switched off.

    Files of the config that are on this machine are sent too (100 MB at most); larger ones belong on storage that
    every node sees, as does [bold]run_dir[/bold]. Submit a run again to resume it.

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
    """End all processes that [bold]quadriga launch[/bold] started on the hosts of a config, and no others.

    This kills a run on them; [bold]quadriga launch[/bold] resumes it from its newest checkpoint.

    Example:

      quadriga down my-ppo.yaml cluster=clusters/ssh-example
    """
    from quadriga.launch.ssh.cluster import bring_down
    from quadriga.launch.ssh.hosts import ssh_settings

    stage, console = load_with_hosts(config, overrides), Console(stderr=True)
    with console.status("Ending Ray on the hosts"):
        ended = bring_down(stage.name, ssh_settings(stage), console)
    console.print(f"Ended {ended} processes on {len(ssh_settings(stage).hosts)} hosts.", highlight=False)


def _resources(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
        return {str(name): float(amount) for name, amount in found.items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"--resources takes JSON such as '{{\"trainer\": 1}}', not {text}.") from None
