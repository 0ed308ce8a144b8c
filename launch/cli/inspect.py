"""The commands to use before a run: data, doctor, hosts, schema (`plan` is in plan.py)."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quadriga.launch.cli.options import Config, Overrides, load_with_hosts


def data(
    config: Config,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show per stage.")] = 2,
    scan: Annotated[int, typer.Option(min=1, help="Rows to read per source.")] = 1000,
) -> None:
    """Show tokens, chat template and loss mask of a few rows before training.

    Tokens that the model learns are green, tokens that it is given are dim.

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
        Path | None, typer.Argument(metavar="CONFIG", help="A config to check too.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Find what would stop a run: check this machine, the installed versions and, given a CONFIG, everything it names.

    Examples:

      quadriga doctor

      quadriga doctor configs/assistant/pipeline.yaml
    """
    from quadriga.launch.config.load import load_config

    stage = load_config(config, overrides or []) if config else None
    from quadriga.launch.cli.doctor import doctor as count_problems

    raise typer.Exit(2 if count_problems(stage, Console(), config) else 0)


def hosts(config: Config, overrides: Overrides = None) -> None:
    """Check every host of a config: versions, GPUs, disk, clocks, ports both ways, the shared run directory.

    Nothing is started. [bold]quadriga launch[/bold] makes the same checks first.

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

    Then start each config with the line:  # yaml-language-server: $schema=quadriga.schema.json
    """
    from quadriga.launch.config.load import json_schema

    print(json.dumps(json_schema(), indent=2))
