"""A Ray that believes in GPUs, and processes that report how they were started instead of using them.

`main` starts the processes of runs as the driver does, and prints what each of them found.
"""

import json
import os
import sys
from typing import Any

from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.model.worker import ModelWorker, WorkerResult
from quadriga.actors.rollout.engine_arguments import engine_arguments
from quadriga.actors.rollout.worker import RolloutWorker
from quadriga.actors.runtime.device import prepare_driver
from quadriga.actors.settings import ClusterSettings, OptimizerSettings, Role
from quadriga.actors.transfer_settings import TransferSettings

GPU_BYTES = 80_000_000_000
"""Of each GPU that is not there."""
VARIABLES = ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "VLLM_TARGET_DEVICE", "TORCH_COMPILE_DISABLE")


def environment() -> dict[str, Any]:
    """What this process was given."""
    return {"environment": {name: os.environ.get(name) for name in VARIABLES}}


class ReportingHost(ModelWorker):
    """Reports instead of loading a model."""

    def start(self, master: tuple[str, int]) -> WorkerResult[dict[str, Any]]:
        return WorkerResult(environment() | {"threads": self.spec.threads}, 0.0, 0)


class ReportingEngine(RolloutWorker):
    """Reports the arguments of its engine instead of making it."""

    def start(self, model: str, max_tokens: int, transfer: TransferSettings | None) -> dict[str, Any]:
        arguments = engine_arguments(model, self.cluster, self.device, max_tokens, transfer is None, GPU_BYTES)
        return environment() | {"threads": self.cluster.rollout.threads, "arguments": arguments}


def main() -> None:
    """Read a model folder, a number of GPUs and runs from stdin as JSON; print what the processes of each reported.

    A run is {"cluster": settings, "roles": [...]}, and the answer process name -> report for each, on one line.
    """
    import ray

    from quadriga.orchestrator.cluster.processes import ModelUse, RolloutPlan, own_ray, processes

    asked = json.load(sys.stdin)
    model = asked["model"]
    prepare_driver()
    ray.init(**own_ray(), num_cpus=8, num_gpus=asked["gpus"], include_dashboard=False, log_to_driver=False)
    roles: tuple[Role, ...] = ("actor", "critic", "reference", "reward")
    classes: dict[str, type] = dict.fromkeys(roles, ReportingHost) | {"rollout": ReportingEngine}
    answers = []
    for each in asked["runs"]:
        trained = {"actor": OptimizerSettings(), "critic": OptimizerSettings()}
        uses = [ModelUse(role, ModelSpec(model, "logprobs"), trained.get(role)) for role in each["roles"]]
        settings = ClusterSettings.model_validate(each["cluster"])
        with processes(settings, uses, RolloutPlan(model, 64, load=False), asked["logs"], classes) as running:
            hosts = [
                (f"{role} {rank}", handle)
                for role, group in running.groups.items()
                for rank, handle in enumerate(group.ranks)
            ]
            found = {name: ray.get(handle.start.remote(("", 0))).value for name, handle in hosts}
            answers.append(found | {worker.name: ray.get(worker.starting) for worker in running.fleet.workers})
    print(json.dumps(answers))
