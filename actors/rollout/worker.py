"""The rollout loop and the worker around it: one thread owns vLLM's engine, everything else asks it.

Requests, aborts and weight updates reach the engine between its steps only, so weights never change under a step.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.actors.runtime.device import engine_arguments, memory_bytes, start_torch
from quadriga.actors.settings import RolloutSettings, SamplingSettings
from quadriga.data.errors import Fault


@dataclass(frozen=True)
class Request:
    """One answer to draw. seed: same seed, same weights, same tokens, wherever and however often it runs."""

    id: str
    prompt_ids: list[int]
    seed: int
    sampling: SamplingSettings
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    """One drawn answer: tokens (the end token included), their log-probs under the sampling distribution, the policy
    version of each token, and why it ended ("stop" or "length")."""

    id: str
    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str


class RolloutLoop:
    """A thread that owns an LLMEngine."""

    def __init__(self, build: Callable[[], Any]):
        """build: makes the engine; called on the loop's own thread.

        Raises whatever `build` raises.
        """
        self._commands: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue()
        self._finished: queue.Queue[Finished] = queue.Queue()
        self._running: set[str] = set()  # ids of what the engine has; the loop's thread only
        self._error: BaseException | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, ready), daemon=True, name="rollout-loop")
        self._thread.start()
        ready.result()

    def call(self, function: Callable[[Any], Any]) -> Any:
        """Run function(engine) between two steps and return its result."""
        if self._error is not None:
            raise RuntimeError(f"the rollout loop stopped: {self._error}") from self._error
        future: Future[Any] = Future()
        self._commands.put((lambda: function(self.engine), future))
        return future.result()

    def add(self, requests: list[Request]) -> None:
        """Queue requests."""

        def add(engine: Any) -> None:
            for request in requests:
                self._add(engine, request)

        self.call(add)

    def collect(self, wait: float) -> list[Finished]:
        """Answers finished since the last call; waits up to `wait` seconds for the first."""
        if self._error is not None:
            raise RuntimeError(f"the rollout loop stopped: {self._error}") from self._error
        result = []
        try:
            result.append(self._finished.get(timeout=wait))
            while True:
                result.append(self._finished.get_nowait())
        except queue.Empty:
            return result

    def clear(self) -> None:
        """Drop every request and every answer that nobody collected."""

        def drop(engine: Any) -> None:
            engine.abort_request(list(self._running))
            self._running.clear()
            while not self._finished.empty():
                self._finished.get_nowait()

        self.call(drop)

    @property
    def ident(self) -> int:
        """The thread's."""
        assert self._thread.ident is not None
        return self._thread.ident

    def stop(self) -> None:
        """End the thread."""
        self._commands.put(None)
        self._thread.join(timeout=30)

    def _run(self, build: Callable[[], Any], ready: Future[None]) -> None:
        try:
            self.engine = build()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while self._serve_commands():
                if self.engine.has_unfinished_requests():
                    for output in self.engine.step():
                        if output.finished:
                            self._running.discard(output.request_id)
                            self._finished.put(_finished(output))
        except BaseException as error:
            self._error = error

    def _serve_commands(self) -> bool:
        """Run what is queued (waiting for something while idle); False ends the loop."""
        while True:
            try:
                command = self._commands.get(block=not self.engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if command is None:
                return False
            function, future = command
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _add(self, engine: Any, request: Request) -> None:
        from vllm import SamplingParams

        sampling = request.sampling
        self._running.add(request.id)
        engine.add_request(
            request.id,
            {"prompt_token_ids": request.prompt_ids},
            SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=request.seed,
                logprobs=0,
                detokenize=False,
                stop_token_ids=list(request.stop_ids),
            ),
        )


def _finished(output: Any) -> Finished:
    answer = output.outputs[0]
    token_ids = list(answer.token_ids)
    logprobs = [position[token].logprob for position, token in zip(answer.logprobs, token_ids, strict=True)]
    versions = [0] * len(token_ids)
    for span in answer.weight_versions or []:
        versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)
    return Finished(output.request_id, token_ids, logprobs, versions, answer.finish_reason)


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
            said = f"a worker was asked for answers of policy version {version} but holds version {self.version}"
            raise Fault(f"generate: {said}", "generate", "rollout")
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
        from quadriga.actors.weights.transfer import Bucket

        info = {"bucket": Bucket(entries, payload, checksum)}
        self.loop.call(lambda engine: engine.collective_rpc("update_weights", kwargs={"update_info": info}))

    def finish_weight_update(self) -> None:
        """Check and commit the version being received."""
        self.loop.call(lambda engine: engine.collective_rpc("finish_weight_update"))
        self._commit(self._next)

    def load_folder(self, folder: str, version: int, bucket_bytes: int) -> None:
        """Take the weights of a model folder, through the same path as a sync."""
        from quadriga.actors.weights.source import buckets
        from quadriga.actors.weights.transfer import folder_tensors, pack_bucket

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
