"""Arguments and options that several commands share, and the loading of configs with ssh hosts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quadriga.data.errors import UserError

if TYPE_CHECKING:  # imports pydantic, which `--help` need not do
    from quadriga.orchestrator.stages.registry import AnyStage

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a stage or a pipeline.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Changes to the config.", show_default=False)
]
WorkingDir = Annotated[
    Path | None,
    typer.Option(
        file_okay=False, exists=True, help="Folder with your own modules (reward functions).", show_default=False
    ),
]
Shared = Annotated[
    list[Path] | None,
    typer.Option(metavar="FOLDER", help="A folder that the nodes see too; nothing in it is sent. Repeatable."),
]
AllowChanged = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY", help="Allow this setting to differ from the original run. Repeatable.", show_default=False
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="URL of the dashboard on the cluster's head node.",
        show_default="RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265",
    ),
]


def load_with_hosts(config: Path, overrides: list[str] | None) -> "AnyStage":
    """Load a config. Raises UserError unless it names hosts to reach by ssh."""
    from quadriga.launch.config.load import load_config

    stage = load_config(config, overrides or [])
    if stage.cluster.ssh is None:
        raise UserError(
            f"{config} names no hosts: set `cluster.ssh.hosts`, or start from cluster=clusters/ssh-example."
        )
    return stage
