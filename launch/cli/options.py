"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a stage or a pipeline.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Changes to the config.", show_default=False)
]
WorkingDir = Annotated[
    Path | None,
    typer.Option(
        file_okay=False, exists=True, help="Folder of your own modules (reward functions).", show_default=False
    ),
]
Shared = Annotated[
    list[Path] | None,
    typer.Option(metavar="FOLDER", help="A folder that the nodes see too: nothing of it is sent. May be repeated."),
]
