"""One run's processes: joins or starts Ray, seats the roles, starts hosts and rollout workers, ends them again."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from quadriga.actors.device import cores, prepare_driver, process_environment, resolve_device
from quadriga.actors.group import ActorGroup, start_groups
from quadriga.actors.model_host import HostSpec, ModelHost
from quadriga.actors.models import ModelSpec
from quadriga.actors.placement import Placement, options, place, threads
from quadriga.actors.settings import ClusterSettings, OptimizerSettings, Role
from quadriga.actors.waiting import wait_all
from quadriga.data.errors import Fault, UserError

START_ATTEMPTS = 3


@dataclass(frozen=True)
class Hosting:
    """A model that a stage wants on the cluster."""

    role: Role
    model: ModelSpec
    optimizer: OptimizerSettings | None = None


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[str | None]:
    """A Ray cluster: the one at `cluster.address`, or one of our own on this machine that ends with the block.

    Yields the dashboard's address, None where it has none. Nested use joins the outer one.
    """
    import ray

    if ray.is_initialized():
        yield None
        return
    prepare_driver()
    arguments: dict[str, Any] = {"address": settings.address} if settings.address else {"num_cpus": cores()}
    arguments |= {"dashboard_host": "127.0.0.1", "include_dashboard": None if settings.address else True}
    context = _start_ray(arguments)
    try:
        yield context.dashboard_url
    finally:
        ray.shutdown()


def _start_ray(arguments: dict[str, Any]) -> Any:
    """ray.init, tried again where a busy machine was too slow for the 30 s that Ray gives its own processes."""
    import ray

    for left in reversed(range(START_ATTEMPTS)):
        try:
            return ray.init(**arguments, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except ConnectionError as error:
            raise UserError(
                f"cluster.address: no Ray cluster answers at {arguments.get('address')}: {error}"
            ) from error
        except Exception as error:  # a bare Exception when its processes do not come up
            ray.shutdown()
            if not left:
                raise Fault(f"Ray did not start in {START_ATTEMPTS} attempts: {error}", "start") from error
    return None


@dataclass
class Processes:
    """What a stage started. Ends with the block of `processes`."""

    device: str
    groups: dict[str, ActorGroup] = field(default_factory=dict)
    workers: list[Any] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)

    def rollout_memory(self) -> int:
        """Largest peak memory of a rollout worker, in bytes."""
        refs = {f"rollout {i}": worker.memory.remote() for i, worker in enumerate(self.workers)}
        return max(wait_all(refs, "memory", 60).values(), default=0)


@dataclass(frozen=True)
class RolloutPlan:
    """The vLLM engines a stage wants. load: start with the folder's weights, not wait for a sync."""

    model: str
    max_tokens: int
    load: bool


@contextmanager
def processes(
    settings: ClusterSettings,
    hostings: list[Hosting],
    rollout: RolloutPlan | None,
    logs: str,
    host_classes: dict[str, type[ModelHost]] | None = None,
) -> Iterator[Processes]:
    """Start every model host and rollout worker at the same time, and end them all when the block ends.

    host_classes: role -> another class to run in its processes.
    """
    import ray

    device = resolve_device(settings.device)
    wanted: dict[str, tuple[int, float]] = {
        h.role: (settings.host(h.role).ranks, settings.host(h.role).gpus) for h in hostings
    }
    if rollout is not None:
        engine_gpus = settings.rollout.gpus * settings.rollout.tensor_parallel
        wanted["rollout"] = (settings.rollout.workers, engine_gpus)
    resources = ray.cluster_resources()
    cpus = cores() if settings.address is None else int(resources.get("CPU", cores()))
    placement = place(wanted, device, settings.placement, cpus, resources.get("GPU", 0))
    reserved = _reserve(placement, settings.deadlines.start)
    running = Processes(device)
    # Actor and critic train at the same time, and so do forward passes of the others: their ranks share the cores.
    at_once = min(cpus, sum(settings.host(h.role).ranks for h in hostings))
    try:
        for hosting in hostings:
            running.groups[hosting.role] = _group(
                hosting, settings, device, cpus, at_once, placement, reserved, logs, (host_classes or {})
            )
        if rollout is not None:
            running.workers, refs = _rollout(settings, rollout, device, placement, reserved, logs)
        start_groups(list(running.groups.values()))
        if rollout is not None:
            wait_all(refs, "start", settings.deadlines.start)
        running.logs = [log for g in running.groups.values() for log in g.logs]
        running.logs += [f"{logs}/rollout-{i}.log" for i in range(len(running.workers))]
        yield running
    finally:
        for group in running.groups.values():
            group.close()
        for worker in running.workers:
            ray.kill(worker)
        if reserved is not None:
            ray.util.remove_placement_group(reserved)


def _reserve(placement: Placement, limit: float) -> Any:
    if not placement.bundles:
        return None
    import ray

    group = ray.util.placement_group(placement.bundles, strategy="PACK")
    wait_all({"placement group": group.ready()}, "start", limit)
    return group


def _group(
    hosting: Hosting,
    settings: ClusterSettings,
    device: str,
    cpus: int,
    at_once: int,
    placement: Placement,
    reserved: Any,
    logs: str,
    host_classes: dict[str, type[ModelHost]],
) -> ActorGroup:
    host = settings.host(hosting.role)
    specs = [
        HostSpec(
            role=hosting.role,
            rank=rank,
            world=host.ranks,
            model=hosting.model,
            cluster=settings,
            device=device,
            threads=threads(host.threads, cpus, at_once),
            optimizer=hosting.optimizer,
        )
        for rank in range(host.ranks)
    ]
    return ActorGroup(specs, logs, placement, reserved, host_classes.get(hosting.role, ModelHost))


def _rollout(
    settings: ClusterSettings, rollout: RolloutPlan, device: str, placement: Placement, reserved: Any, logs: str
) -> tuple[list[Any], dict[str, Any]]:
    import ray

    from quadriga.actors.process import in_process
    from quadriga.actors.rollout import RolloutWorker

    workers, refs = [], {}
    for index in range(settings.rollout.workers):
        actor = ray.remote(in_process(RolloutWorker, f"{logs}/rollout-{index}.log", f"rollout-{index}")).options(
            max_concurrency=4,
            runtime_env={"env_vars": process_environment(device, settings.rollout.threads)},
            **options(placement, reserved, "rollout", index),
        )
        worker = actor.remote(settings.rollout, device)
        refs[f"rollout {index}"] = worker.start.remote(rollout.model, settings.dtype, rollout.max_tokens, rollout.load)
        workers.append(worker)
    return workers, refs
