"""RolloutWorker: one vLLM engine in a Ray actor, its weights received and committed between steps."""

import time
from typing import Any

from quadriga.actors.rollout.engine_arguments import engine_arguments
from quadriga.actors.rollout.engine_loop import EngineLoop, Finished, Request
from quadriga.actors.runtime.device import gpu_bytes, memory_bytes, start_torch
from quadriga.actors.settings import ClusterSettings
from quadriga.actors.transfer_settings import TransferSettings
from quadriga.data.errors import Fault


class RolloutWorker:
    """One vLLM engine in a Ray actor. `version` is the policy version that it holds, None while it holds none."""

    def __init__(self, cluster: ClusterSettings, device: str):
        self.cluster, self.device = cluster, device
        self.version: int | None = None
        self._incoming: int | None = None  # the version being received

    def start(self, model: str, max_tokens: int, transfer: TransferSettings | None) -> dict[str, Any]:
        """Start the engine; return seconds, peak memory and memory before the model was loaded, both in bytes.

        max_tokens: longest sequence, prompt and answer together. transfer: how syncs will bring the weights; None reads
        those of the folder `model`, as version 0.
        """
        began = time.monotonic()
        self.loop = EngineLoop(lambda: self._build_engine(model, max_tokens, load=transfer is None))
        self.working_thread = self.loop.ident
        if transfer is None:
            self._commit(0)
        else:
            self._call_engine("init_weight_transfer_engine", init_info={"transfer": transfer})
        seconds = time.monotonic() - began
        return {
            "seconds": seconds,
            "memory": memory_bytes(self.device),
            "memory_before_model": self._memory_before_model,
        }

    def submit(self, requests: list[Request], version: int) -> None:
        """Queue requests, to be answered with the weights of this version.

        Raises Fault if the engine holds another version or none: stale weights never serve a request.
        """
        if version != self.version:
            held = "no weights" if self.version is None else f"version {self.version}"
            message = f"a worker was asked for answers of policy version {version} but holds {held}"
            raise Fault(message, phase="generate", process="rollout")
        self.loop.add(requests)

    def clear(self) -> None:
        """Drop all requests and answers."""
        self.loop.clear()

    def collect(self, wait: float) -> list[Finished]:
        """Return the answers finished since the last call, waiting up to `wait` seconds for the first."""
        return self.loop.collect(wait)

    def start_weight_update(self, version: int) -> None:
        """Begin to receive the weights of a version; until it is finished the worker serves nothing.

        Raises RuntimeError if a request is running.
        """
        self.version, self._incoming = None, version
        self.loop.call(lambda engine: _require_idle(engine).collective_rpc("start_weight_update"))

    def receive_weights(self, message: Any) -> None:
        """Load the weights that a sender's message brings. Raises RuntimeError if it arrived damaged."""
        self._call_engine("update_weights", update_info={"message": message})

    def finish_weight_update(self) -> None:
        """Check and commit the version being received. Raises RuntimeError if weights were left out."""
        assert self._incoming is not None, "no weight update was started"
        self._call_engine("finish_weight_update")
        self._commit(self._incoming)

    def load_folder(self, folder: str, version: int) -> None:
        """Load the weights of a model folder by the same path as a sync, as the given version."""
        self.start_weight_update(version)
        self._call_engine("update_weights", update_info={"folder": folder})
        self.finish_weight_update()

    def memory(self) -> int:
        """Return the peak memory of this process in bytes."""
        return memory_bytes(self.device)

    def _build_engine(self, model: str, max_tokens: int, load: bool) -> Any:
        """Make the LLMEngine, on the thread that will own it."""
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from quadriga.actors.weights.engine import BACKEND, EXTENSION

        parallel = self.cluster.rollout.tensor_parallel > 1
        # The engine's own processes have the GPUs then, and this one must not take memory there.
        start_torch("cpu" if parallel else self.device, self.cluster.rollout.threads)
        self._memory_before_model = memory_bytes(self.device)
        arguments = engine_arguments(model, self.cluster, self.device, max_tokens, load, gpu_bytes(self.device))
        return LLMEngine.from_engine_args(
            EngineArgs(
                **arguments,
                weight_transfer_config=WeightTransferConfig(backend=BACKEND),
                worker_extension_cls=EXTENSION,  # registers the backend in every process of the engine
            )
        )

    def _call_engine(self, method: str, **arguments: Any) -> None:
        """Call a method of vLLM's worker in every process of the engine, between two steps."""
        self.loop.call(lambda engine: engine.collective_rpc(method, kwargs=arguments))

    def _commit(self, version: int) -> None:
        """Drop the prefix cache, which holds values of the old weights, and mark answers with the new version."""

        def commit(engine: Any) -> None:
            if self.cluster.rollout.prefix_caching and not engine.reset_prefix_cache():
                raise RuntimeError("vLLM did not drop its prefix cache after new weights")
            engine.set_weight_version(str(version))

        self.loop.call(commit)
        self.version = version


def _require_idle(engine: Any) -> Any:
    """Return the engine. Raises RuntimeError if it has a request."""
    if engine.has_unfinished_requests():
        raise RuntimeError("weights may only change while no request is running")
    return engine
