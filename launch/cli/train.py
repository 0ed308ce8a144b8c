"""The commands that train and answer: run, eval, chat, export."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.data.settings import SEED_LIMIT
from quadriga.launch.cli.options import AllowChanged, Config, Overrides

ExportedModel = Literal["policy", "reward"]
LAUNCHERS = ("ssh", "slurm", "kubernetes")
"""Sections of `cluster:` that bring up a cluster, which only `quadriga launch` does."""


def run(
    config: Config,
    overrides: Overrides = None,
    allow_changed: AllowChanged = None,
    restart: Annotated[
        int, typer.Option(min=0, metavar="N", help="Restart the run up to N times if it fails or is killed.")
    ] = 0,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An environment variable that must be set. Repeatable.", show_default=False),
    ] = None,
    secrets_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="NAME=value lines for --secret, readable only by you.", show_default=False),
    ] = None,
) -> None:
    """Run a stage or a pipeline; run it again and it resumes where it stopped.

    A resumed run must have its original settings, except those that [bold]--allow-changed[/bold] names.

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

        options = [f"--allow-changed={key}" for key in allow_changed or []]
        raise typer.Exit(supervise([str(config), *(overrides or []), *options], restart))
    from quadriga.launch.checks.stage import require_sound
    from quadriga.launch.config.load import build, load_config, single_stages

    stage, console = load_config(config, overrides or []), Console()
    if launcher := next((name for name in LAUNCHERS if getattr(stage.cluster, name) is not None), None):
        raise UserError(
            f"`cluster.{launcher}` brings up a cluster, but `quadriga run` stays on this machine: use `quadriga "
            f"launch`, or set cluster.{launcher}=null."
        )
    from quadriga.actors.runtime.fork_server import forking
    from quadriga.orchestrator.stages.registry import spec_of

    kinds = ["rollout" for _, first in single_stages(stage)[:1] if spec_of(first).engine(first) is not None]
    with forking(stage.cluster, *kinds):  # imports the slow packages while the config is checked
        with console.status("Checking the config"):
            notes = require_sound(stage)
        for note in notes:
            console.print(f"Note: {note}", style="yellow", markup=False)
        from quadriga.orchestrator.run import run as run_stage

        raise typer.Exit(run_stage(stage, build, allow_changed or []))


def evaluate(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint or a model folder.")],
    against: Annotated[
        str | None, typer.Option(help="A second one, to compute the win rate against.", show_default=False)
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Number of prompts.", show_default="the run's own")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sampling temperature; 0 takes the likeliest token.", show_default="the run's own"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers per prompt.")] = 1,
    reward: Annotated[
        str | None, typer.Option(help="The reward model to score with.", show_default="the run's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED_LIMIT - 1, help="Seed of the sampling.")] = 0,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A public suite and its file, instead of the gold reward; may be repeated. NAME: truthfulqa, bbq, "
            "crows-pairs, refusal, hhh, or module:Class.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file.", show_default=False)] = None,
) -> None:
    """Measure a model with the gold reward (truthful, harmless, helpful) or public suites, alone or against another.

    Gold and reward-model scores are shown side by side; the win rate has a 95 % interval and counts ties as half.
    Suites are compared item by item.

    Examples:

      quadriga eval runs/assistant

      quadriga eval runs/assistant --against runs/assistant/round-0/sft --rows 300

      quadriga eval runs/assistant/round-1/ppo/checkpoints/step-10 --temperature 0

      quadriga eval models/mine --suite truthfulqa=mc_task.json --suite refusal=xstest.csv --against models/theirs
    """
    if suite:
        from quadriga.orchestrator.evaluation.suite_report import evaluate_suites

        numbers = evaluate_suites(model, _named_paths(suite), against, rows=rows, seed=seed)
    else:
        from quadriga.orchestrator.evaluation.report import evaluate_run

        numbers = evaluate_run(
            model, against, rows=rows, temperature=temperature, samples_per_prompt=samples, reward=reward, seed=seed
        )
    if to is not None:
        from quadriga.data.atomic_files import write_json_atomic

        write_json_atomic(to, numbers)


def _named_paths(pairs: list[str]) -> dict[str, str]:
    """Return name -> path of `NAME=PATH` texts."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UserError(f"--suite {pair}: give the name of a suite and its file, such as truthfulqa=mc_task.json.")
    return {name: path for name, _, path in (pair.partition("=") for pair in pairs)}


def chat(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint or a model folder.")],
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=SEED_LIMIT - 1, help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a model in the terminal.

    Examples:

      quadriga chat runs/assistant

      echo "What is the capital of Pelagia?" | quadriga chat runs/assistant --temperature 0
    """
    from quadriga.orchestrator.chat import chat as talk

    talk(model, temperature=temperature, max_tokens=max_tokens, seed=seed)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, a pipeline or a checkpoint.")],
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder to write.")],
    model: Annotated[ExportedModel, typer.Option(help="Which of the run's models to copy.")] = "policy",
) -> None:
    """Copy a run's model, tokenizer and chat template to a folder that transformers and vLLM load.

    Examples:

      quadriga export runs/assistant my-assistant

      quadriga export runs/assistant my-judge --model reward
    """
    from quadriga.orchestrator.export import export_run

    Console().print(f"The {model} is in {export_run(run, to, model)}", highlight=False, markup=False)
