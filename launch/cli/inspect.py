"""The commands that look before a run: data, doctor, hosts, schema (plan has a file of its own)."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quadriga.launch.cli.options import Config, Overrides, load_with_hosts


def data(
    config: Config,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show of each stage.")] = 2,
    scan: Annotated[int, typer.Option(min=1, help="Rows to read of each source.")] = 1000,
) -> None:
    """Show tokens, chat template and loss mask of a few rows before anything is trained.

    What the model learns is green, what it is given is dim.

    Examples:

      quadriga data configs/assistant/pipeline.yaml

      quadriga data my-sft.yaml data.train=more.jsonl --rows 5
    """
    from quadriga.launch.config.load import load_config

    stage = load_config(config, overrides or [])
    from quadriga.launch.checks.preview import Preview

    Preview(Console(), rows, scan).show(stage)


def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A config to look at too.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Look for what would stop a run: this machine, the installed versions and, given a CONFIG, all that it names.

    Examples:

      quadriga doctor

      quadriga doctor configs/assistant/pipeline.yaml
    """
    from quadriga.launch.config.load import load_config

    stage = load_config(config, overrides or []) if config else None
    from quadriga.launch.cli.doctor import doctor as look

    raise typer.Exit(2 if look(stage, Console(), config) else 0)


def hosts(config: Config, overrides: Overrides = None) -> None:
    """Look at every host of a config: versions, GPUs, disk, clocks, ports both ways, the shared run directory.

    Nothing is started. [bold]quadriga launch[/bold] does the same first.

    Example:

      quadriga hosts my-ppo.yaml cluster=clusters/ssh-example run_dir=/shared/runs/ppo
    """
    from quadriga.launch.ssh.cluster import require_sound_hosts

    console = Console()
    require_sound_hosts(load_with_hosts(config, overrides), console)
    console.print("Everything is in order.", style="green")


def schema() -> None:
    """Print the JSON schema of config files, for editors that check and complete YAML.

    Example:

      quadriga schema > quadriga.schema.json

    and, as a config's first line:  # yaml-language-server: $schema=quadriga.schema.json
    """
    from quadriga.launch.config.load import json_schema

    print(json.dumps(json_schema(), indent=2))
