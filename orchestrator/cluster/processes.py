"""Processes: the model and rollout workers of one run on a Ray cluster, from placement to their end."""

import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.actors.model.group import ActorGroup, start_groups
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.model.worker import ModelWorker, ModelWorkerSpec
from quadriga.actors.rollout.worker import RolloutWorker
from quadriga.actors.runtime.device import cores, prepare_driver, resolve_device
from quadriga.actors.runtime.fork_server import forking
from quadriga.actors.runtime.process import remote_process, runtime_env
from quadriga.actors.runtime.remote_calls import gather, request_heartbeat
from quadriga.actors.settings import ClusterSettings, OptimizerSettings, Role
from quadriga.data.errors import Fault, Lost, ProcessDied, UserError
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.cluster.fleet import Fleet
from quadriga.orchestrator.cluster.placement import (
    fewest_cores,
    max_processes_per_node,
    place,
    resource_requests,
    threads,
)
from quadriga.orchestrator.cluster.reservations import Reservations, machines

START_ATTEMPTS = 3
LONGEST_TMPDIR = 38
"""Characters of TMPDIR that leave room for Ray's longest socket, 69 below it, in the 107 that Linux allows."""
HEARTBEAT_SECONDS = 2.0
"""How long a process may take to answer a heartbeat before it is assumed to be busy."""


@dataclass(frozen=True)
class ModelUse:
    """A model that a stage runs on the cluster. optimizer: None for a model that is not trained."""

    role: Role
    model: ModelSpec
    optimizer: OptimizerSettings | None = None


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[str | None]:
    """Join the Ray cluster at `cluster.address`, or start one on this machine that ends with the block.

    Yields the dashboard's address, None if there is none. Nested use shares the outer connection.
    """
    prepare_driver()
    import ray

    if ray.is_initialized():
        yield None
        return
    if settings.address:
        arguments: dict[str, Any] = {"address": settings.address, "include_dashboard": None}
    else:
        arguments = own_ray() | {"num_cpus": cores(), "include_dashboard": True}
    with forking(settings):
        context = _start_ray(arguments | {"dashboard_host": "127.0.0.1"})
        try:
            yield context.dashboard_url
        finally:
            ray.shutdown()


def own_ray() -> dict[str, Any]:
    """Return the arguments of `ray.init` that start a Ray for this run alone, whatever else is on the machine.

    Where the home folder cannot be written, Ray gets a token by the environment instead of a file there. Where TMPDIR
    is too long for the paths of sockets, or has a blank, this process and Ray's use a folder of this user below /tmp.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() and not _token_file_is_writable():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(folder) > LONGEST_TMPDIR or " " in folder:
        short = Path(f"/tmp/quadriga-{os.getuid()}")
        short.mkdir(mode=0o700, exist_ok=True)
        if short.stat().st_uid != os.getuid():
            raise UserError(f"TMPDIR ({folder}) is too long for Ray's sockets, and {short} belongs to somebody else.")
        short.chmod(0o700)
        os.environ |= {"TMPDIR": str(short), "RAY_TMPDIR": str(short)}  # Ray's dashboard also has sockets below TMPDIR
        tempfile.tempdir = None
    return {"address": "local"}  # without it Ray joins what RAY_ADDRESS or a file in /tmp names


def _token_file_is_writable() -> bool:
    """Return whether Ray has, or can write, the file of its token."""
    folder = Path(os.path.expanduser("~/.ray"))
    if (folder / "auth_token").is_file():
        return os.access(folder / "auth_token", os.R_OK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _start_ray(arguments: dict[str, Any]) -> Any:
    """Call ray.init, again if a busy machine takes longer than the 30 s that Ray gives its own processes."""
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
                raise Fault(f"Ray did not start in {START_ATTEMPTS} attempts: {error}", phase="start") from error
    return None


@dataclass(frozen=True)
class RolloutPlan:
    """The vLLM engines of a stage.

    model: folder of the model. max_tokens: longest sequence. load: start with the folder's weights; otherwise the first
    sync brings them.
    """

    model: str
    max_tokens: int
    load: bool


class Processes:
    """What a stage runs on the cluster: one group of model workers per role, and a fleet of rollout workers.

    uses: the models. rollout: the engines, None for a stage that does not generate. logs: folder of the log files.
    worker_classes: role -> another class to run in its processes. note: records events (`RunDir.note`).
    Raises UserError if the cluster cannot hold them.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        uses: list[ModelUse],
        rollout: RolloutPlan | None,
        logs: str,
        worker_classes: dict[str, type[Any]] | None = None,
        note: Callable[..., None] = lambda event, **fields: None,
    ):
        self.settings, self.device, self._logs = settings, resolve_device(settings.device), logs
        self._uses = {use.role: use for use in uses}
        self._worker_classes, self._rollout = worker_classes or {}, rollout
        nodes = machines()
        requests = resource_requests(settings, list(self._uses), rollout is not None)
        placement = place(requests, self.device, settings.placement, nodes)
        self._reservations = Reservations(placement, settings.deadlines.start, note)
        self._cpus = fewest_cores(nodes)
        # On CPU all models compute on the cores at the same time; on GPUs only offloaded optimizers do.
        busy = [use.role for use in uses if self.device == "cpu" or use.optimizer is not None]
        self._at_once = min(self._cpus, max_processes_per_node(placement, busy, nodes))
        self._locations: dict[str, tuple[str, int]] = {}
        self.groups: dict[str, ActorGroup] = {}
        self.fleet = Fleet(
            self._launch,
            settings.rollout.workers if rollout else 0,
            settings.deadlines,
            lambda index: self._reservations.release("rollout", index),
        )

    @property
    def logs(self) -> list[str]:
        """The paths of the log files, one per process."""
        logs = [log for group in self.groups.values() for log in group.logs]
        return logs + [f"{self._logs}/rollout-{index}.log" for index in range(self.fleet.count)]

    def start(self) -> None:
        """Start all model workers and rollout workers at the same time; return when they are up."""
        self._reservations.reserve()
        self.fleet.start()
        self.rebuild(list(self._uses))
        self.fleet.await_start()

    def rebuild(self, roles: Iterable[Role]) -> None:
        """Start these roles again from their initial weights; what is left of their processes is killed."""
        roles = list(roles)
        for role in roles:
            if role in self.groups:
                self.groups[role].close()
                self._reservations.replace_lost_nodes(role, wait=True)
            self.groups[role] = self._group(self._uses[role])
        start_groups([self.groups[role] for role in roles])

    def ranks(self) -> dict[str, int]:
        """Return role -> number of its processes."""
        return {role: group.world for role, group in self.groups.items()} | {"rollout": len(self.fleet.workers)}

    def process_locations(self) -> dict[str, tuple[str, int]]:
        """Return process name (`actor 0`) -> (Ray's node id, process id); a silent process keeps its last answer."""
        handles = {name: rank for group in self.groups.values() for name, rank in group.handles.items()}
        handles |= {worker.name: worker.handle for worker in self.fleet.workers}
        if handles:
            refs = {name: request_heartbeat(handle) for name, handle in handles.items()}
            self._locations |= gather(refs, "process_locations", HEARTBEAT_SECONDS)[0]
        return self._locations

    def record_locations(self, run: RunDir) -> None:
        """Write the location of every process, and the nodes' addresses, into run.json."""
        import ray

        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        processes = self.process_locations()
        run.update_run(processes=processes, nodes={node: nodes.get(node) for node, _ in processes.values()})

    def dead_roles(self) -> set[Role]:
        """Return the roles that have lost a process."""
        refs = {name: request_heartbeat(rank) for group in self.groups.values() for name, rank in group.handles.items()}
        _, lost = gather(refs, "recovery", HEARTBEAT_SECONDS) if refs else ({}, {})
        return {self.role_of(name) for name, loss in lost.items() if isinstance(loss, ProcessDied)}

    def role_of(self, name: str) -> Role:
        """Return the role in a process name: `actor` for `actor 1`."""
        return next(role for role in self._uses if role == name.split(" ")[0])

    def handle(self, role: str, rank: int) -> Any:
        """Return the Ray handle of one process."""
        return self.fleet.workers[rank].handle if role == "rollout" else self.groups[role].ranks[rank]

    def close(self) -> None:
        """Kill every process and release what it reserved."""
        for group in self.groups.values():
            group.close()
        self.fleet.close()
        self._reservations.close()

    def _group(self, use: ModelUse) -> ActorGroup:
        """Create the model workers of a role, without starting them."""
        worker = self.settings.model_worker(use.role)
        specs = [
            ModelWorkerSpec(
                role=use.role,
                rank=rank,
                world=worker.ranks,
                model=use.model,
                cluster=self.settings,
                device=self.device,
                threads=threads(worker.threads, self._cpus, self._at_once),
                optimizer=use.optimizer,
            )
            for rank in range(worker.ranks)
        ]
        worker_class = self._worker_classes.get(use.role, ModelWorker)
        options = [self._reservations.options(use.role, rank) for rank in range(worker.ranks)]
        return ActorGroup(specs, self._logs, options, worker_class)

    def _launch(self, index: int) -> tuple[Any, Any]:
        """Create a rollout worker; return its handle and the reference of its start call."""
        assert self._rollout is not None
        plan, settings = self._rollout, self.settings.rollout
        self._reservations.replace_lost_nodes("rollout", wait=False)
        worker_class = self._worker_classes.get("rollout", RolloutWorker)
        actor = remote_process(worker_class, f"{self._logs}/rollout-{index}.log", f"rollout-{index}").options(
            max_concurrency=4,
            runtime_env=runtime_env("rollout", self.device, settings.threads),
            **self._reservations.options("rollout", index),
        )
        handle = actor.remote(self.settings, self.device)
        transfer = None if plan.load else self.settings.weight_transfer
        return handle, handle.start.remote(plan.model, plan.max_tokens, transfer)


@contextmanager
def processes(
    settings: ClusterSettings,
    uses: list[ModelUse],
    rollout: RolloutPlan | None,
    logs: str,
    worker_classes: dict[str, type[Any]] | None = None,
    on_loss: Callable[[Lost], None] | None = None,
    note: Callable[..., None] = lambda event, **fields: None,
) -> Iterator[Processes]:
    """Start `Processes` and end them with the block. on_loss: as in `Fleet`."""
    running = Processes(settings, uses, rollout, logs, worker_classes, note)
    if on_loss is not None:
        running.fleet.on_loss = on_loss
    try:
        running.start()
        yield running
    finally:
        running.close()
