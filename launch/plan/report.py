"""Plans as tables for people and as JSON for programs."""

from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from quadriga.launch.plan.planner import Plan
from quadriga.orchestrator.stages.registry import spec_of

SCHEMA = 1  # of the JSON: higher when a key changes its name or meaning; keys may be added
GB = 1e9
PARTS = ("weights", "master", "gradients", "optimizer", "buffers", "kept by malloc", "KV cache", "runtime")
PHASES = ("start", "generate", "forward", "update", "sync")
NEVER = (
    "No number of GPUs holds it: weights and optimizer states can be divided, activations of a sequence and the KV "
    "cache cannot. Allow shorter sequences, or lower cluster.rollout.kv_cache_bytes."
)


def as_json(plans: list[Plan], gpu_memory: int) -> dict[str, Any]:
    """Return the plans as plain data: bytes are integers, seconds floats."""
    stages, fits = [_stage_json(plan) for plan in plans], all(plan.fits for plan in plans)
    return {"schema": SCHEMA, "gpu_memory_bytes": gpu_memory, "fits": fits, "stages": stages}


def _stage_json(plan: Plan) -> dict[str, Any]:
    stage, roles = plan.stage, dict[str, Any]()
    for member in stage.members:
        settings, footprint = getattr(stage.cluster, member.role), plan.layout.footprints[member.role]
        keys = ("tensor_parallel",) if member.role == "rollout" else ("zero_stage", "offload")
        model = {"parameters": member.shape.parameters(member.head), "trained": member.trained}
        held = {"held_bytes": footprint.held, "phase_bytes": footprint.phases, "host_bytes": footprint.host}
        own = {"processes": stage.processes(member.role)} | {key: getattr(settings, key) for key in keys}
        roles[member.role] = model | own | held | {"peak_bytes": footprint.peak}
    facts = {"name": stage.name, "stage": stage.settings.stage, "device": stage.device, "gpus": plan.layout.gpus}
    fit = {"fits": plan.fits, "roles": roles, "devices": list(map(asdict, plan.layout.devices))}
    advice = {"suggestions": list(map(asdict, plan.suggestions))}
    return facts | fit | advice | {"seconds": plan.seconds, "seconds_from": plan.basis, "assumed": plan.assumed}


def show(plans: list[Plan], gpu_memory: int, console: Console) -> None:
    """Print memory, fit and times of every stage. gpu_memory: bytes."""
    note = partial(console.print, markup=False, highlight=False)
    for plan in plans:
        stage = plan.stage
        dtype = stage.cluster.on(stage.device).dtype
        console.print(f"\n[bold]{stage.name}[/bold] ({stage.settings.stage}, {dtype})", highlight=False)
        console.print(_memory(plan), _devices(plan, gpu_memory))
        for suggestion in plan.suggestions:
            gpus = f"{suggestion.gpus} GPU{'s' * (suggestion.gpus > 1)}"
            note(f"It would fit on {gpus} with: {' '.join(suggestion.overrides)}")
        if not plan.fits and stage.device == "cuda" and not plan.suggestions:
            note(NEVER)
        if plan.seconds is not None:
            steps = spec_of(stage.settings).steps(stage.settings)
            console.print(_seconds(plan.seconds, steps))
        for sentence in plan.assumed:
            note(f"Assumed: {sentence}", style="dim")
    for basis in dict.fromkeys(plan.basis for plan in plans):
        note(f"\n{basis}", style="dim")


def _memory(plan: Plan) -> Table:
    members, each = plan.stage.members, list(plan.layout.footprints.values())
    size, unit = _unit(max(footprint.peak for footprint in each))
    headings = ["", *(f"{member.role}\n× {plan.stage.processes(member.role)}" for member in members)]
    table = _table(f"{unit} of one {'GPU' if plan.stage.device == 'cuda' else 'process'}", headings)

    def row(name: str, values: list[int], style: str | None = None) -> None:
        if any(values):
            table.add_row(name, *(f"{value / size:,.1f}" if value else "-" for value in values), style=style)

    sizes = [_counted(member.shape.parameters(member.head)) for member in members]
    table.add_row("parameters", *sizes, end_section=True)
    for part in PARTS:
        row(part, [footprint.held.get(part, 0) for footprint in each])
    table.add_section()
    for phase in PHASES:
        row(f"+ {phase}", [sum(footprint.phases.get(phase, {}).values()) for footprint in each])
    table.add_section()
    row("peak", [footprint.peak for footprint in each], "bold")
    row("on its host", [sum(footprint.host.values()) for footprint in each])
    return table


def _devices(plan: Plan, gpu_memory: int) -> Table:
    size, unit = _unit(max(device.bytes for device in plan.layout.devices))
    title = "What shares a device" if plan.stage.device == "cuda" else "This machine"
    table = _table(title, ["", "processes of", f"peak {unit}", ""])
    for device in plan.layout.devices:
        gpu = device.kind == "gpu"
        fits = device.bytes <= gpu_memory if gpu else plan.fits or plan.stage.device == "cuda"
        room = f"{gpu_memory / GB:.0f} GB" if gpu else "its memory"
        verdict = f"[bold red]more than {room}" if not fits else f"of {room}" if gpu else ""
        name = f"{device.count} × {'GPU' if gpu else 'host'}"
        table.add_row(name, ", ".join(device.roles), f"{device.bytes / size:,.1f}", verdict)
    return table


def _seconds(phases: dict[str, float], steps: int) -> Table:
    table, total = _table("Seconds", [*phases, f"{steps:,} step{'s' * (steps > 1)}"]), steps * phases["step"]
    duration = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h"
    table.add_row(*(f"{value:.2f}" if value < 10 else f"{value:,.0f}" for value in phases.values()), duration)
    return table


def _table(title: str, headings: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "processes of") else "right")
    return table


def _unit(largest: int) -> tuple[float, str]:
    return (GB, "GB") if largest >= 10 * GB else (1e6, "MB")


def _counted(number: int) -> str:
    """Write a number as people speak of models: 8.03 B, 135 M."""
    return f"{number:,}" if number < 1e6 else f"{number / 1e6:.3g} M" if number < 1e9 else f"{number / 1e9:.2f} B"
