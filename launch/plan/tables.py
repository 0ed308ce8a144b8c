"""A plan as tables for people."""

from rich.console import Console
from rich.table import Table

from quadriga.launch.plan.memory import PHASES
from quadriga.launch.plan.plans import Plan

GB = 1e9

NEVER = (
    "No number of GPUs holds it: weights and optimizer states can be divided, activations of a sequence and the KV "
    "cache cannot. Allow shorter sequences, or lower cluster.rollout.kv_cache_bytes."
)

PARTS = ("weights", "master", "gradients", "optimizer", "buffers", "kept by malloc", "KV cache", "runtime")


def show(plans: list[Plan], gpu_memory: int, console: Console) -> None:
    """Print memory, fit and seconds of every stage. gpu_memory: bytes."""
    for plan in plans:
        console.print(
            f"\n[bold]{plan.stage.name}[/bold] ({plan.stage.kind}, {plan.stage.cluster.dtype})", highlight=False
        )
        console.print(_memory(plan))
        console.print(_devices(plan, gpu_memory))
        for suggestion in plan.suggestions:
            changes = " ".join(suggestion.overrides)
            plural = "s" * (suggestion.gpus > 1)
            console.print(
                f"It would fit on {suggestion.gpus} GPU{plural} with: {changes}", highlight=False, markup=False
            )
        if not plan.fits and plan.device == "cuda" and not plan.suggestions:
            console.print(NEVER, highlight=False)
        if plan.seconds is not None:
            console.print(_seconds(plan))
        for sentence in [*plan.stage.assumed, *(plan.seconds.assumed if plan.seconds else [])]:
            console.print(f"Assumed: {sentence}", style="dim", markup=False, highlight=False)
    for basis in dict.fromkeys(plan.basis for plan in plans):
        console.print(f"\n{basis}", style="dim", markup=False, highlight=False)


def _memory(plan: Plan) -> Table:
    """A column for each role: what one of its processes holds, and what each phase adds while it runs."""
    footprints = plan.layout.footprints
    each = list(footprints.values())
    size, unit = _unit(max(footprint.peak for footprint in each))
    table = Table(title=f"{unit} of one {'GPU' if plan.device == 'cuda' else 'process'}", title_justify="left")
    table.add_column("")
    for role in footprints:
        table.add_column(f"{role}\n× {_number(plan, role)}", justify="right")

    def row(name: str, values: list[int], style: str | None = None) -> None:
        if any(values):
            table.add_row(name, *(f"{value / size:,.1f}" if value else "-" for value in values), style=style)

    table.add_row("parameters", *(_counted(_parameters(plan, role)) for role in footprints), end_section=True)
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
    title = "What shares a device" if plan.device == "cuda" else "This machine"
    table = Table(title=title, title_justify="left")
    for name in ("", "processes of", f"peak {unit}", ""):
        table.add_column(name, justify="right" if unit in name else "left")
    for device in plan.layout.devices:
        gpu = device.kind == "gpu"
        fits = device.bytes <= gpu_memory if gpu else plan.fits or plan.device == "cuda"
        room = f" {gpu_memory / GB:.0f} GB" if gpu else " its memory"
        verdict = "[bold red]more than" + room if not fits else f"of{room}" if gpu else ""
        name = f"{device.count} × {'GPU' if gpu else 'host'}"
        table.add_row(name, ", ".join(device.roles), f"{device.bytes / size:,.1f}", verdict)
    return table


def _seconds(plan: Plan) -> Table:
    assert plan.seconds is not None
    table = Table(title="Seconds", title_justify="left")
    phases = plan.seconds.phases
    steps = 1 if plan.stage.kind == "rank" else plan.stage.settings.total_steps
    for name in [*phases, "step", f"{steps:,} step{'s' * (steps > 1)}"]:
        table.add_column(name, justify="right")
    table.add_row(
        *(_s(value) for value in phases.values()), _s(plan.seconds.step), _duration(steps * plan.seconds.step)
    )
    return table


def _number(plan: Plan, role: str) -> int:
    cluster = plan.stage.cluster
    return cluster.rollout.workers if role == "rollout" else cluster.model_worker(role).ranks  # type: ignore[arg-type]


def _counted(number: int) -> str:
    """As people speak of models: 8.03 B, 135 M."""
    if number < 1e6:
        return f"{number:,}"
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def _parameters(plan: Plan, role: str) -> int:
    if role == "rollout":
        assert plan.stage.engine is not None
        return plan.stage.engine.parameters()
    member = plan.stage.member(role)
    return member.shape.parameters(member.head)


def _unit(largest: int) -> tuple[float, str]:
    """(bytes, name) of the unit in which the numbers of a table are neither long nor all zero."""
    return (GB, "GB") if largest >= 10 * GB else (1e6, "MB")


def _s(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
