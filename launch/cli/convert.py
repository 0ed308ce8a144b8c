"""`quadriga convert` on the command line."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

Form = Literal["quadriga", "trl", "openassistant", "argilla", "label-studio"]


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="File of rankings, a glob, or a data set on disk.")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="File to write: .jsonl, or .json for a JSON list.")],
    to: Annotated[Form, typer.Option("--to", help="Form to write.")],
    from_: Annotated[
        Form | None, typer.Option("--from", help="Form of SOURCE.", show_default="recognised by the columns")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace TO if it exists.")] = False,
) -> None:
    """Convert rankings between Quadriga's form and those of TRL, OpenAssistant, Argilla and Label Studio.

    Content that the new form cannot hold, such as ties in TRL's pairs, is dropped, counted and printed.

    A row that does not fit is an error with file and line, and nothing is written.

    A reward stage reads all of these forms directly.

    Examples:

      quadriga convert runs/assistant/round-1/rank/export/rankings.jsonl pairs.jsonl --to trl

      quadriga convert label-studio-export.json rankings.jsonl --to quadriga
    """
    from quadriga.data.loading.conversion import convert as convert_file

    done = convert_file(source, target, to, from_, force)
    console = Console()
    for loss, count in done.dropped.items():
        console.print(f"Dropped {count} {loss}.", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if done.unranked:
        text = f"Left out {done.unranked} row(s) of {source} without two ranked answers."
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    text = f"{target}: {done.rows} row(s) of {done.rankings} ranking(s) in the form {to}."
    console.print(text, style="green", highlight=False, markup=False, soft_wrap=True)
