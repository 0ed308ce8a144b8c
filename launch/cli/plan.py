"""`quadriga plan` on the command line."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.cli.options import Overrides

Gpu = Literal["A100", "H100", "H200"]


def plan(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file of a stage or a pipeline.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    gpu: Annotated[Gpu, typer.Option(help="Whose published speed to use where there is no GPU.")] = "H100",
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, metavar="GB", help="Memory of a GPU.", show_default="this machine's, else 80")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First measure this machine, in about two minutes, and keep the result.")
    ] = False,
) -> None:
    """Estimate memory and time of a run without starting it.

    What every process holds in each phase, what shares a GPU, whether it fits, and if not, what would.

    Examples:

      quadriga plan --calibrate

      quadriga plan configs/assistant/pipeline.yaml

      quadriga plan my-ppo.yaml policy=models/llama-3.1-8b cluster=clusters/h100x8-8b --json
    """
    if config is None and not calibrate:
        raise UserError("Name a config to plan, for example `quadriga plan configs/assistant/pipeline.yaml`.")
    from quadriga.launch.config.load import load_config

    stage = load_config(config, overrides or []) if config else None
    from quadriga.launch.plan import planner, report

    console = Console(stderr=as_json)
    if calibrate:
        planner.calibrate_this_machine(stage, console)
    if stage is None:
        return
    memory = int(gpu_memory * 1e9) if gpu_memory else planner.gpu_memory()
    made = planner.make_plans(stage, memory, gpu)
    if as_json:
        print(json.dumps(report.as_json(made, memory), indent=2))
        return
    report.show(made, memory, console)
