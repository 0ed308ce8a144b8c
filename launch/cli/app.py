"""The `quadriga` command: its groups of commands, and the exit code and message of every error.

Heavy packages are imported inside the commands, so that `--help` is instant.
"""

import sys
import tempfile
import traceback
from collections.abc import Callable

import typer
from rich.console import Console
from rich.markup import escape

from quadriga.actors.runtime.device import prepare_driver
from quadriga.data.errors import Fault, UserError
from quadriga.launch.cli import clusters, inspect, jobs, train
from quadriga.launch.cli.convert import convert
from quadriga.launch.cli.plan import plan
from quadriga.launch.cli.terminal import outlive_the_terminal

app = typer.Typer(
    name="quadriga",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Train assistants from human feedback, from a laptop to a cluster.\n\n"
        "Start here: [bold]quadriga run configs/assistant/pipeline.yaml[/bold] trains a small assistant end to end.\n\n"
        "Every command with a CONFIG accepts changes to it as [bold]key.path=value[/bold], for example "
        "[bold]total_steps=20 optimizer.lr=1e-4 cluster=clusters/local[/bold]."
    ),
    epilog="Add [bold]--debug[/bold] to any command to see the traceback of an error.",
)


COMMANDS: dict[str, list[Callable[..., None]]] = {
    "Train and answer": [train.run, train.evaluate, train.chat, train.export],
    "Before a run": [inspect.data, convert, inspect.doctor, inspect.schema, plan, inspect.hosts],
    "On a cluster": [clusters.launch, clusters.submit, clusters.down],
    "While it runs": [jobs.jobs, jobs.logs, jobs.stop, jobs.scale],
}
"""Title of each panel of `--help` -> its commands, in the order in which a newcomer needs them."""
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(name={"evaluate": "eval"}.get(command.__name__), rich_help_panel=panel)(command)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 after a fault, 2 for an error of the user, 130 after Ctrl-C."""
    prepare_driver()
    outlive_the_terminal()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="quadriga")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        if debug:
            traceback.print_exc()
        return failed("Error", str(error), 2)
    except Fault as error:
        if debug:
            traceback.print_exc()
        return failed("Failed", str(error), 1)
    except Exception as error:
        if debug:
            traceback.print_exc()
            return 1
        with tempfile.NamedTemporaryFile("w", prefix="quadriga-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
        return failed("Failed", f"{reason} This is a bug in Quadriga; its traceback is in {log.name}.", 1)
    return 0


def failed(label: str, text: str, code: int) -> int:
    """Print one paragraph on standard error and return the exit code."""
    message = f"[bold red]{escape(label)}:[/bold red] {escape(' '.join(text.split()))}"
    Console(stderr=True).print(message, highlight=False)
    return code
