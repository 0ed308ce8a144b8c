"""The rollout worker: one vLLM engine in a Ray actor, its weights received and committed between steps."""

import time
from pathlib import Path
from typing import Any

from quadriga.actors.rollout.engine_loop import Finished, Request, RolloutLoop
from quadriga.actors.runtime.device import engine_arguments, memory_bytes, start_torch
from quadriga.actors.settings import RolloutSettings
from quadriga.data.errors import Fault


class RolloutWorker:
    """One vLLM engine in a Ray actor."""

    def __init__(self, settings: RolloutSettings, device: str):
        self.settings, self.device = settings, device
        self.version = self._next = -1

    def start(self, model: str, dtype: str, max_tokens: int, load: bool) -> dict[str, Any]:
        """Start the engine. load: read the weights of `model` (version 0); otherwise they come by a sync."""
        began = time.monotonic()
        self.model = model
        before = 0

        def build() -> Any:
            nonlocal before
            from vllm.config import WeightTransferConfig
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            from quadriga.actors.weights.object_store import BACKEND

            settings = self.settings
            start_torch(self.device, settings.threads)
            before = memory_bytes(self.device)
            arguments = dict(
                model=model,
                dtype=dtype,
                max_model_len=max_tokens,
                max_num_seqs=settings.max_num_seqs,
                tensor_parallel_size=settings.tensor_parallel,
                kv_cache_memory_bytes=settings.kv_cache_bytes,
                enforce_eager=settings.enforce_eager,
                enable_prefix_caching=settings.prefix_caching,
                skip_tokenizer_init=True,
                logprobs_mode="processed_logprobs",
                distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
                weight_transfer_config=WeightTransferConfig(backend=BACKEND),
                load_format="auto" if load else "dummy",
                disable_log_stats=True,
                trust_remote_code=False,
                seed=0,
            )
            arguments |= engine_arguments(self.device, max_tokens) | settings.engine
            return LLMEngine.from_engine_args(EngineArgs(**arguments))

        self.loop = RolloutLoop(build)
        self.working_thread = self.loop.ident
        self.loop.call(lambda engine: engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}}))
        if load:
            self._commit(0)
        seconds = time.monotonic() - began
        return {"seconds": seconds, "memory": memory_bytes(self.device), "memory_before_model": before}

    def submit(self, requests: list[Request], version: int) -> None:
        """Queue requests, to be answered by weights of this version.

        Raises Fault if the engine holds another version: nothing is ever served by stale weights.
        """
        if version != self.version:
            message = f"a worker was asked for answers of policy version {version} but holds version {self.version}"
            raise Fault(message, phase="generate", process="rollout")
        self.loop.add(requests)

    def clear(self) -> None:
        """Drop every request and answer."""
        self.loop.clear()

    def collect(self, wait: float) -> list[Finished]:
        """Finished answers, waiting up to `wait` seconds for the first."""
        return self.loop.collect(wait)

    def start_weight_update(self, version: int) -> None:
        """Begin to receive the weights of a version. Until it is finished the worker serves nothing."""
        self.version = -1
        self._next = version
        self.loop.call(lambda engine: _idle(engine).collective_rpc("start_weight_update"))

    def receive_bucket(self, entries: tuple[Any, ...], checksum: int, payload: Any) -> None:
        """One bucket of weights."""
        from quadriga.actors.weights.bucket import Bucket

        info = {"bucket": Bucket(entries, payload, checksum)}
        self.loop.call(lambda engine: engine.collective_rpc("update_weights", kwargs={"update_info": info}))

    def finish_weight_update(self) -> None:
        """Check and commit the version being received."""
        self.loop.call(lambda engine: engine.collective_rpc("finish_weight_update"))
        self._commit(self._next)

    def load_folder(self, folder: str, version: int, bucket_bytes: int) -> None:
        """Take the weights of a model folder, through the same path as a sync."""
        from quadriga.actors.weights.bucket import pack_bucket
        from quadriga.actors.weights.source import buckets, folder_tensors

        self.start_weight_update(version)
        for tensors in buckets(folder_tensors(Path(folder)), bucket_bytes):
            bucket = pack_bucket(tensors)
            self.receive_bucket(bucket.entries, bucket.checksum, bucket.payload)
        self.finish_weight_update()

    def memory(self) -> int:
        """Peak memory of this process in bytes."""
        return memory_bytes(self.device)

    def _commit(self, version: int) -> None:
        def commit(engine: Any) -> None:
            if self.settings.prefix_caching and not engine.reset_prefix_cache():
                raise RuntimeError("vLLM did not drop its prefix cache after new weights")
            engine.set_weight_version(str(version))

        self.loop.call(commit)
        self.version = version


def _idle(engine: Any) -> Any:
    if engine.has_unfinished_requests():
        raise RuntimeError("weights may only change when no request runs")
    return engine
