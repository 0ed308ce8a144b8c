"""The `quadriga` command. Heavy packages are imported inside the commands, so that `--help` is instant."""

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from quadriga.actors.runtime.device import prepare_driver
from quadriga.data.errors import Fault, UserError
from quadriga.launch.cli import clusters as cli_hosts
from quadriga.launch.cli import jobs as cli_jobs
from quadriga.launch.cli import plan as cli_plan
from quadriga.launch.cli.options import Config, Overrides

Kind = Literal["policy", "reward"]
LAUNCHERS = ("ssh", "slurm", "kubernetes")
TRAIN, BEFORE, CLUSTER, RUNNING = "Train and answer", "Before a run", "On a cluster", "While it runs"

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
        "Every command that takes a CONFIG takes changes to it as [bold]key.path=value[/bold], for example "
        "[bold]total_steps=20 optimizer.lr=1e-4 cluster=clusters/local[/bold]."
    ),
    epilog="Any command takes [bold]--debug[/bold], which shows the traceback of an error.",
)


@app.command(rich_help_panel=TRAIN)
def run(
    config: Config,
    overrides: Overrides = None,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Go on though this setting changed. May be given again.", show_default=False),
    ] = None,
    restart: Annotated[
        int, typer.Option(min=0, metavar="N", help="Start it again up to N times if it fails or is killed.")
    ] = 0,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A variable that must be set. May be given again.", show_default=False),
    ] = None,
    secrets_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="NAME=value lines that only you may read, for --secret.", show_default=False),
    ] = None,
) -> None:
    """Run a stage or a pipeline; run again, it goes on where it stopped.

    A run that goes on must have the settings it began with, but for what [bold]--allow-changed[/bold] names.

    Examples:

      quadriga run configs/assistant/pipeline.yaml

      quadriga run configs/assistant/sft.yaml total_steps=50 run_dir=runs/short

      quadriga run configs/assistant/pipeline.yaml stages.sft.config.optimizer.lr=1e-3

      quadriga run my-ppo.yaml cluster=clusters/h100x8-8b

      quadriga run my-ppo.yaml total_steps=200 --allow-changed total_steps --restart 3
    """
    if secret:
        from quadriga.launch.cli.secrets import take_secrets

        take_secrets(secret, secrets_file)
    if restart:
        from quadriga.launch.cli.restart import supervise

        words = [f"--allow-changed={key}" for key in allow_changed or []]
        raise typer.Exit(supervise([str(config), *(overrides or []), *words], restart))
    from quadriga.launch.checks.stage import require_sound
    from quadriga.launch.config.load import build, load_config

    stage, console = load_config(config, overrides or []), Console()
    if launcher := next((name for name in LAUNCHERS if getattr(stage.cluster, name) is not None), None):
        raise UserError(
            f"`cluster.{launcher}` says how a cluster is brought up, and `run` stays on this machine: say `quadriga "
            f"launch`, or cluster.{launcher}=null."
        )
    from quadriga.actors.runtime.fork_server import forking
    from quadriga.orchestrator.settings import GeneratingStage

    wanted = ["rollout"] if isinstance(stage, GeneratingStage) else []
    with forking(stage.cluster, *wanted):  # what takes long to import is imported while the config is checked
        with console.status("Checking the config"):
            notes = require_sound(stage)
        for note in notes:
            console.print(f"Note: {note}", style="yellow", markup=False)
        from quadriga.orchestrator.run import run as run_to_the_end

        raise typer.Exit(run_to_the_end(stage, build, allow_changed or []))


@app.command(rich_help_panel=BEFORE)
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
    from quadriga.launch.checks.preview import DataView

    DataView(Console(), rows, scan).show(stage)


@app.command(name="eval", rich_help_panel=TRAIN)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint or a model folder.")],
    against: Annotated[str | None, typer.Option(help="Another one, for the win rate.", show_default=False)] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Prompts to answer.", show_default="the run's own")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the likeliest token.", show_default="the run's own")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to every prompt.")] = 1,
    reward: Annotated[
        str | None, typer.Option(help="The reward model to score with.", show_default="the run's own")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    to: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file.", show_default=False)] = None,
) -> None:
    """Measure a model with the gold judge (truthful, harmless, helpful), alone or against another.

    Gold and reward-model score stand side by side; the win rate comes with its 95 % interval, ties counting half.

    Examples:

      quadriga eval runs/assistant

      quadriga eval runs/assistant --against runs/assistant/round-0/sft --rows 300

      quadriga eval runs/assistant/round-1/ppo/checkpoints/step-10 --temperature 0
    """
    from quadriga.orchestrator.evaluation.report import evaluate_run

    numbers = evaluate_run(
        model, against, rows=rows, temperature=temperature, samples_per_prompt=samples, reward=reward, seed=seed
    )
    if to is not None:
        from quadriga.data.rundir import write_json_atomic

        write_json_atomic(to, numbers)


@app.command(rich_help_panel=TRAIN)
def chat(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint or a model folder.")],
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Talk to a model in the terminal.

    Examples:

      quadriga chat runs/assistant

      echo "What is the capital of Pelagia?" | quadriga chat runs/assistant --temperature 0
    """
    from quadriga.orchestrator.chat import chat as talk

    talk(model, temperature=temperature, max_tokens=max_tokens, seed=seed)


@app.command(rich_help_panel=TRAIN)
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, a pipeline or a checkpoint.")],
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    model: Annotated[Kind, typer.Option(help="Which of the run's models.")] = "policy",
) -> None:
    """Copy a run's model, tokenizer and chat template to a folder that transformers and vLLM load.

    Examples:

      quadriga export runs/assistant my-assistant

      quadriga export runs/assistant my-judge --model reward
    """
    from quadriga.orchestrator.export import export_run

    Console().print(f"The {model} is in {export_run(run, to, model)}", highlight=False, markup=False)


@app.command(rich_help_panel=BEFORE)
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


@app.command(rich_help_panel=BEFORE)
def schema() -> None:
    """Print the JSON schema of config files, for editors that check and complete YAML.

    Example:

      quadriga schema > quadriga.schema.json

    and, as a config's first line:  # yaml-language-server: $schema=quadriga.schema.json
    """
    from quadriga.launch.config.load import json_schema

    print(json.dumps(json_schema(), indent=2))


COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    BEFORE: (cli_plan.plan, cli_hosts.hosts),
    CLUSTER: (cli_hosts.launch, cli_jobs.submit, cli_hosts.down),
    RUNNING: (cli_jobs.jobs, cli_jobs.logs, cli_jobs.stop, cli_jobs.scale),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0; 2 what the user can mend; 1 a fault; 130 Ctrl-C."""
    prepare_driver()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="quadriga")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        if debug:
            traceback.print_exc()
        return failed("Error", str(error), 2)
    except Fault as error:
        if debug:
            traceback.print_exc()
        where = ", ".join(part for part in (error.phase, error.actor) if part)
        return failed(f"Failed ({where})" if where else "Failed", str(error), 1)
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
    """One paragraph on standard error; returns the exit code."""
    message = f"[bold red]{escape(label)}:[/bold red] {escape(' '.join(text.split()))}"
    Console(stderr=True).print(message, highlight=False)
    return code
