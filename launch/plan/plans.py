"""`quadriga plan`: what a stage needs and how long it takes, before anything is started."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import UserError
from quadriga.launch.checks.report import gpu_count
from quadriga.launch.plan.devices import Layout, Suggestion, layout, on_the_same_gpus, smallest
from quadriga.launch.plan.published import GPUS, published
from quadriga.launch.plan.seconds import Speeds, StepTime, step_time
from quadriga.launch.plan.stages import PlannedStage, planned_stages

SCHEMA = 1
"""Of the JSON; a higher number when a key changes its name or meaning. Keys may be added."""

DEFAULT_GPU_BYTES = 80_000_000_000


@dataclass(frozen=True)
class Plan:
    """A stage, its layout, whether that fits, what would, and its seconds (None: nothing to tell them from).

    basis: where the seconds come from, or why there are none.
    """

    stage: PlannedStage
    device: str
    layout: Layout
    fits: bool
    suggestions: list[Suggestion]
    seconds: StepTime | None
    basis: str


def make_plans(stage: Any, gpu_memory: int, gpu: str = "H100") -> list[Plan]:
    """A plan of a loaded stage, or of each stage of a pipeline.

    gpu_memory: bytes. gpu: a key of `GPUS`, for seconds on GPUs that are not here. Raises UserError where a model's
    shape cannot be known.
    """
    return [_plan(planned, gpu_memory, gpu) for planned in planned_stages(stage)]


def measure_this_machine(stage: Any | None, console: Console) -> None:
    """Calibrate for the device and type of a stage (of none: this machine's device) and say where that is kept."""
    from quadriga.launch.plan import calibration
    from quadriga.launch.plan.bench import calibrate

    cluster = stage.cluster if stage is not None else ClusterSettings()
    device = device_of(cluster)
    dtype = cluster.dtype if stage is not None else "bfloat16" if device == "cuda" else "float32"
    if device == "cuda" and not gpu_count():
        raise UserError("There is no GPU here to measure. Run `quadriga plan --calibrate` on a machine that has one.")
    with console.status("Measuring this machine") as status:
        measured = calibrate(device, dtype, lambda text: status.update(f"Measuring this machine: {text}"))
    file = calibration.save(measured)
    console.print(f"Measured {measured.machine} in {dtype}; kept in {file}", highlight=False, markup=False)


def speeds_of(device: str, dtype: str, gpu: str) -> tuple[Speeds | None, str]:
    """What was measured here, else what is published of the GPU here or of `gpu`; and a sentence that says which."""
    from quadriga.launch.plan import calibration

    here = gpu_count() > 0
    if device == "cpu" or here:
        measured = calibration.load(device, dtype)
        if measured is not None:
            return measured, measured.describe()
    if device == "cpu":
        return None, f"No seconds: this machine was not measured in {dtype}. `quadriga plan --calibrate` does it."
    known = published(calibration.machine(device)) if here else GPUS[gpu]
    if known is None:
        return None, "No seconds: this GPU is not known. `quadriga plan --calibrate` measures it."
    return known, known.describe()


def device_of(cluster: ClusterSettings) -> str:
    """`auto` is what this machine has; a cluster to join is asked only when the run joins it."""
    if cluster.device != "auto":
        return cluster.device
    return "cuda" if gpu_count() else "cpu"


def memory_of_this_gpu() -> int | None:
    """Bytes of the first GPU here; None without one."""
    if not gpu_count():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def memory_of_this_host(cluster: ClusterSettings) -> int | None:
    """Bytes of memory of this machine; None where the run will be on others."""
    if cluster.address is not None or cluster.ssh is not None:
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))


def as_json(plans: list[Plan], gpu_memory: int) -> dict[str, Any]:
    """The plans as plain data: bytes are integers, seconds floats."""
    return {
        "schema": SCHEMA,
        "gpu_memory_bytes": gpu_memory,
        "fits": all(plan.fits for plan in plans),
        "stages": [_stage_json(plan) for plan in plans],
    }


def _plan(stage: PlannedStage, gpu_memory: int, gpu: str) -> Plan:
    device = device_of(stage.cluster)
    found = layout(stage, device)
    here = device == "cpu" or gpu_count() > 0
    host_memory = memory_of_this_host(stage.cluster) if here else None
    fits = found.fits(gpu_memory, host_memory)
    suggestions: list[Suggestion] = []
    if device == "cuda" and not fits:
        either = on_the_same_gpus(stage, gpu_memory, host_memory), smallest(stage, gpu_memory, host_memory)
        suggestions = [suggestion for suggestion in either if suggestion is not None]
    speeds, basis = speeds_of(device, stage.cluster.dtype, gpu)
    seconds = step_time(stage, device, speeds) if speeds is not None else None
    return Plan(stage, device, found, fits, suggestions, seconds, basis)


def _stage_json(plan: Plan) -> dict[str, Any]:
    stage, cluster = plan.stage, plan.stage.cluster
    roles: dict[str, Any] = {}
    for member in stage.members:
        host = cluster.model_worker(member.role)
        roles[member.role] = {
            "parameters": member.shape.parameters(member.head),
            "trained": member.trained,
            "processes": host.ranks,
            "zero_stage": host.zero_stage,
            "offload": host.offload,
        }
    if stage.engine is not None:
        roles["rollout"] = {
            "parameters": stage.engine.parameters(),
            "trained": False,
            "processes": cluster.rollout.workers,
            "tensor_parallel": cluster.rollout.tensor_parallel,
        }
    for role, footprint in plan.layout.footprints.items():
        roles[role] |= {
            "held_bytes": footprint.held,
            "phase_bytes": footprint.phases,
            "host_bytes": footprint.host,
            "peak_bytes": footprint.peak,
        }
    return {
        "name": stage.name,
        "stage": stage.kind,
        "device": plan.device,
        "gpus": plan.layout.gpus,
        "fits": plan.fits,
        "roles": roles,
        "devices": [asdict(device) for device in plan.layout.devices],
        "suggestions": [asdict(suggestion) for suggestion in plan.suggestions],
        "seconds": {**plan.seconds.phases, "step": plan.seconds.step} if plan.seconds is not None else None,
        "seconds_from": plan.basis,
        "assumed": [*stage.assumed, *(plan.seconds.assumed if plan.seconds else [])],
    }
