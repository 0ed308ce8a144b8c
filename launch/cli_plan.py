"""`quadriga plan` on the command line."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def plan(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file of a stage or a pipeline.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Changes to the config.", show_default=False)
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, metavar="GB", help="Of a GPU.", show_default="this machine's, else 80")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Tell memory and time of a run before anything is started.

    What every process holds in each phase, what shares a GPU, whether it fits, and if not, what would.

    Examples:

      quadriga plan my-ppo.yaml policy=models/llama-3.1-8b cluster=clusters/h100x8-8b

      quadriga plan --calibrate
    """
    from quadriga.launch.config import load_config
    from quadriga.launch.plan import DEFAULT_GPU_GB, make_plans, memory_of_this_gpu
    from quadriga.launch.plan import as_json as plain
    from quadriga.launch.plan_tables import show

    stage = load_config(config, overrides or [])
    memory = (
        int((gpu_memory or DEFAULT_GPU_GB) * 1e9) if gpu_memory or not memory_of_this_gpu() else memory_of_this_gpu()
    )
    plans = make_plans(stage, memory, None)
    if as_json:
        print(json.dumps(plain(plans, memory), indent=2))
    else:
        show(plans, memory, "", Console())
