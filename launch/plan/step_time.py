"""Seconds of a step: its phases follow one another, and inside a phase models work side by side."""

from quadriga.actors.runtime.device import cores
from quadriga.launch.plan.calibration import Calibration, Call, Generation, Transfer
from quadriga.launch.plan.devices import placed
from quadriga.launch.plan.gpu_specs import GpuSpec
from quadriga.launch.plan.workload import PlannedStage, micro_batches
from quadriga.orchestrator.cluster.placement import threads
from quadriga.orchestrator.stages.work import Elements, Work

Speeds = Calibration | GpuSpec


def step_time(stage: PlannedStage, work: Work, speeds: Speeds) -> dict[str, float]:
    """Return the seconds of each phase of this work, and of the `step`."""
    rollout, engine, phases = stage.cluster.rollout, stage.engine, dict[str, float]()
    if engine is not None:
        share, running, parts = work.prompts[:: rollout.workers], rollout.max_num_seqs, rollout.tensor_parallel
        alone = speeds.seconds(Generation(engine.shape, share, work.answer, running, stage.width, parts))
        each = [(alone, rollout.workers, rollout.threads)]
        phases["generate"] = alone if stage.device == "cuda" else _on_cores(each, speeds.slowdown)
    if work.sequences:
        phases["forward"] = _side_by_side(stage, speeds, work.sequences, trains=False)
    if work.updates:
        phases["update"] = sum(_side_by_side(stage, speeds, batch, trains=True) for batch in work.updates)
    if engine is not None and stage.hosted:
        phases["sync"] = speeds.seconds(Transfer(engine.shape, stage.width))
    return phases | {"step": sum(phases.values())}


def _side_by_side(stage: PlannedStage, speeds: Speeds, elements: Elements, trains: bool) -> float:
    budget = stage.cluster.train_tokens if trains else stage.cluster.forward_tokens
    calls: dict[str, Call] = {}
    for member in stage.hosted:
        if member.trained or not trains:
            ranks = stage.processes(member.role)
            micro = micro_batches(elements, ranks, budget)
            calls[member.role] = Call(member.shape, member.head, micro, ranks, stage.width, trains)
    if stage.device == "cuda":  # those of one GPU take turns
        alone = {role: speeds.seconds(call) for role, call in calls.items()}
        gpus = (gpu for host in placed(stage) for gpu in host)
        return max(sum(seconds for role, seconds in alone.items() if role in gpu) for gpu in gpus)
    at_once = min(cores(), sum(stage.processes(member.role) for member in stage.hosted))
    given = {role: threads(getattr(stage.cluster, role).threads, cores(), at_once) for role in calls}
    each = [(speeds.seconds(call, given[role]), call.ranks, given[role]) for role, call in calls.items()]
    return _on_cores(each, speeds.slowdown)


def _on_cores(calls: list[tuple[float, int, int]], slowdown: float) -> float:
    """Return the seconds until the last of (seconds alone, processes, threads of each) has ended on shared cores."""
    busy = sum(seconds * processes * count for seconds, processes, count in calls)
    together = slowdown if sum(processes for _, processes, _ in calls) > 1 else 1.0
    return together * max(max(seconds for seconds, _, _ in calls), busy / cores())
