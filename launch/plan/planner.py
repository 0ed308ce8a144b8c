"""Plan of each stage: what its processes hold, whether that fits, what would, and how long a step takes."""

import os
from dataclasses import dataclass

import torch
from rich.console import Console

from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import UserError
from quadriga.launch.checks.report import gpu_count
from quadriga.launch.plan import calibration
from quadriga.launch.plan.benchmark import calibrate
from quadriga.launch.plan.devices import Layout, Suggestion, layout, suggestions
from quadriga.launch.plan.gpu_specs import COMPUTE, GPUS, LINK, MEMORY
from quadriga.launch.plan.step_time import Speeds, step_time
from quadriga.launch.plan.workload import PlannedStage, device_of, planned_stages, work_of
from quadriga.orchestrator.stages.registry import AnyStage


@dataclass(frozen=True)
class Plan:
    """A stage, its layout, whether that fits, and what would. seconds: of each phase and of the `step`; None without
    speeds. basis: where they come from, or why there are none. assumed: what had to be, in sentences."""

    stage: PlannedStage
    layout: Layout
    fits: bool
    suggestions: list[Suggestion]
    seconds: dict[str, float] | None
    basis: str
    assumed: list[str]


def make_plans(stage: AnyStage, gpu_memory: int, gpu: str = "H100") -> list[Plan]:
    """Plan a loaded stage, or each stage of a pipeline. gpu_memory: bytes. gpu: a key of `GPUS`, for times on GPUs that
    are not here. Raises UserError where a model's shape cannot be known."""
    plans = []
    for planned in planned_stages(stage):
        device, cluster = planned.device, planned.cluster
        found = layout(planned)
        here = (device == "cpu" or gpu_count()) and cluster.address is None and cluster.ssh is None
        host_memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if here else None
        fits = found.fits(gpu_memory, host_memory)
        advice = suggestions(planned, gpu_memory, host_memory) if device == "cuda" and not fits else []
        speeds, basis = speeds_of(device, cluster.on(device).dtype, gpu)
        seconds, assumed = None, planned.assumed
        if speeds is not None:
            work = work_of(planned.settings)
            seconds, assumed = step_time(planned, work, speeds), assumed + work.assumed
        plans.append(Plan(planned, found, fits, advice, seconds, basis, assumed))
    return plans


def calibrate_this_machine(stage: AnyStage | None, console: Console) -> None:
    """Calibrate for the device and type of a stage (of none: this machine's device) and print where that is kept."""
    cluster = stage.cluster if stage else ClusterSettings()
    device = device_of(cluster)
    dtype = cluster.on(device).dtype
    if device == "cuda" and not gpu_count():
        raise UserError("There is no GPU here to measure. Run `quadriga plan --calibrate` on a machine that has one.")
    with console.status("Measuring this machine") as status:
        measured = calibrate(device, dtype, lambda text: status.update(f"Measuring this machine: {text}"))
    file = calibration.save(measured)
    console.print(f"Measured {measured.machine} in {dtype}; kept in {file}", highlight=False, markup=False)


def speeds_of(device: str, dtype: str, gpu: str) -> tuple[Speeds | None, str]:
    """Return what was measured here, else what is published of the GPU here or of `gpu`; and where it comes from."""
    if (device == "cpu" or gpu_count()) and (measured := calibration.load(device, dtype)):
        return measured, f"Times are from the calibration of this machine ({measured.machine}) on {measured.date[:10]}."
    name = "" if device == "cpu" else calibration.machine(device) if gpu_count() else gpu
    known = next((known for known in GPUS if known in name), None)
    if known is None:
        return None, f"No time estimate: this machine is not calibrated for {dtype}. Run `quadriga plan --calibrate`."
    return GPUS[known], (
        f"Times are from the published peaks of an {known}: {COMPUTE:.0%} of its operations, {MEMORY:.0%} of its "
        f"memory's and {LINK:.0%} of its links' bandwidth. Run `quadriga plan --calibrate` there for better ones."
    )


def gpu_memory() -> int:
    """Return the bytes of the first GPU here, and of 80 GB without one."""
    return int(torch.cuda.get_device_properties(0).total_memory) if gpu_count() else 80_000_000_000
