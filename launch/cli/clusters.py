"""The commands that bring clusters up and down: launch, down, hosts."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.cli.options import Config, Overrides, Shared, WorkingDir


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
        from quadriga.launch.cli.app import run

        run(config, overrides)


def down(config: Config, overrides: Overrides = None) -> None:
    """End what [bold]quadriga launch[/bold] started on the hosts of a config, and nothing else.

    A run that is on them is killed; [bold]quadriga launch[/bold] goes on from its newest checkpoint.

    Example:

      quadriga down my-ppo.yaml cluster=clusters/ssh-example
    """
    from quadriga.launch.ssh.cluster import bring_down

    stage, console = _with_hosts(config, overrides), Console(stderr=True)
    with console.status("Ending Ray on the hosts"):
        ended = bring_down(stage.name, stage.cluster.ssh, console)
    console.print(f"{ended} processes were ended on {len(stage.cluster.ssh.hosts)} hosts.", highlight=False)


def hosts(config: Config, overrides: Overrides = None) -> None:
    """Look at every host of a config: versions, GPUs, disk, clocks, ports both ways, the shared run directory.

    Nothing is started. [bold]quadriga launch[/bold] does the same first.

    Example:

      quadriga hosts my-ppo.yaml cluster=clusters/ssh-example run_dir=/shared/runs/ppo
    """
    from quadriga.launch.ssh.cluster import require_sound_hosts

    console = Console()
    require_sound_hosts(_with_hosts(config, overrides), console)
    console.print("Everything is in order.", style="green")


def _with_hosts(config: Path, overrides: list[str] | None) -> Any:
    from quadriga.launch.config.load import load_config

    stage = load_config(config, overrides or [])
    if stage.cluster.ssh is None:
        raise UserError(f"{config} names no hosts: give `cluster.ssh.hosts`, or cluster=clusters/ssh-example.")
    return stage
