"""FaultInjector: causes planned and random faults. Each is in run.json before it happens, and happens only once."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from quadriga.actors.runtime.remote_calls import request_heartbeat, wait_all
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.cluster.processes import Processes
from quadriga.orchestrator.settings import FaultSettings, PlannedFault

EVENT = "fault_injected"
PROCESS_ANSWER_SECONDS = 10.0
"""How long a process may take to report its location before its fault is called off."""


def faults_of_step(settings: FaultSettings, step: int, ranks: dict[str, int]) -> Iterator[tuple[str, PlannedFault]]:
    """Yield (key, fault) for each fault of a step, counted from 1.

    ranks: role -> number of its processes; faults of processes that do not exist are left out. A key identifies a fault
    in all attempts of a run: `planned 0`, `random 17`.
    """
    for number, fault in enumerate(settings.planned):
        if fault.step == step and (fault.role == "driver" or fault.rank < ranks.get(fault.role, 0)):
            yield f"planned {number}", fault
    if settings.random is not None:
        random, generator = settings.random, np.random.default_rng([settings.random.seed, step])
        roles = [role for role in random.roles if role == "driver" or ranks.get(role, 0)]
        if generator.random() < random.rate and roles:
            role = roles[generator.integers(len(roles))]
            action = random.actions[generator.integers(len(random.actions))]
            yield (
                f"random {step}",
                PlannedFault(
                    action="kill" if role == "driver" else action,
                    role=role,
                    rank=int(generator.integers(ranks.get(role, 1))),
                    step=step,
                    after=float(generator.uniform(0, random.within)),
                ),
            )


class FaultInjector:
    """Causes the faults of a run, except those that an earlier attempt already had."""

    def __init__(self, settings: FaultSettings, run: RunDir, running: Processes):
        self._settings, self._run, self._running = settings, run, running
        self._done = {event["key"] for event in run.events() if event["event"] == EVENT}

    def enter(self, step: int, phase: str | None) -> None:
        """Cause the faults of a phase of a step that begins (None: of the step itself); steps are counted from 1."""
        if not self._settings.planned and self._settings.random is None:
            return
        for key, fault in faults_of_step(self._settings, step, self._running.ranks()):
            if fault.phase == phase and key not in self._done:
                self._done.add(key)
                if fault.after:
                    timer = threading.Timer(fault.after, self._cause, (key, fault))
                    timer.daemon = True
                    timer.start()
                else:
                    self._cause(key, fault)

    def _cause(self, key: str, fault: PlannedFault) -> None:
        if fault.role == "driver":
            import ray

            self._note(key, fault, ray.get_runtime_context().get_node_id(), os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)
        name = f"{fault.role} {fault.rank}"
        handle = self._running.handle(fault.role, fault.rank)
        try:
            node, pid = wait_all({name: request_heartbeat(handle)}, "faults", PROCESS_ANSWER_SECONDS)[name]
        except Exception as error:  # the process is ending, or not up yet
            self._run.note("fault_called_off", key=key, reason=str(error))
            return
        self._note(key, fault, node, pid)
        handle.inject_fault.options(concurrency_group="heartbeat").remote(fault.action, fault.seconds)

    def _note(self, key: str, fault: PlannedFault, node: str, pid: int) -> None:
        fields: dict[str, Any] = {"action": fault.action, "role": fault.role, "rank": fault.rank, "step": fault.step}
        self._run.note(EVENT, key=key, **fields, phase=fault.phase, node=node, pid=pid)
