"""EngineLoop: the one thread that owns vLLM's engine and runs what other threads ask of it.

Requests, aborts and weight updates reach the engine between its steps only, so weights never change during a step.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from quadriga.actors.settings import SamplingSettings


@dataclass(frozen=True)
class Request:
    """One answer to sample.

    seed: of this answer; the same seed and weights give the same tokens on any worker, however often it is sampled.
    sampling: its `max_tokens` is the limit of the answer. stop_ids: tokens that end the answer.
    """

    id: str
    prompt_ids: list[int]
    seed: int
    sampling: SamplingSettings
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    """One sampled answer.

    token_ids: including the token that ended it. logprobs: of the tokens under the sampling distribution, in nats.
    versions: policy version per token. finish_reason: `stop` or `length`.
    """

    id: str
    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str


class EngineLoop:
    """A thread that owns an LLMEngine for the life of the process."""

    def __init__(self, build: Callable[[], Any]):
        """Start the thread and wait until it has its engine.

        build: makes the engine; called on the loop's thread. What it raises is raised here.
        """
        self._commands: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._finished: queue.Queue[Finished] = queue.Queue()
        self._running: set[str] = set()  # ids of the engine's requests; used on the loop's thread only
        self._error: BaseException | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, ready), daemon=True, name="engine-loop")
        self._thread.start()
        ready.result()

    def call(self, function: Callable[[Any], Any]) -> Any:
        """Run function(engine) between two steps and return its result.

        Raises what the function raises, or RuntimeError if the loop has stopped.
        """
        self._require_running()
        future: Future[Any] = Future()
        self._commands.put((lambda: function(self.engine), future))
        return future.result()

    def add(self, requests: list[Request]) -> None:
        """Queue requests."""

        def add_all(engine: Any) -> None:
            for request in requests:
                self._running.add(request.id)
                engine.add_request(request.id, {"prompt_token_ids": request.prompt_ids}, _sampling_params(request))

        self.call(add_all)

    def collect(self, wait: float) -> list[Finished]:
        """Return the answers finished since the last call, waiting up to `wait` seconds for the first.

        Raises RuntimeError if the loop has stopped.
        """
        self._require_running()
        result = []
        try:
            result.append(self._finished.get(timeout=wait))
            while True:
                result.append(self._finished.get_nowait())
        except queue.Empty:
            return result

    def clear(self) -> None:
        """Drop all requests and all answers that were not collected."""

        def drop(engine: Any) -> None:
            engine.abort_request(list(self._running))
            self._running.clear()
            while not self._finished.empty():
                self._finished.get_nowait()

        self.call(drop)

    @property
    def ident(self) -> int:
        """Identifier of the loop's thread."""
        assert self._thread.ident is not None
        return self._thread.ident

    def _require_running(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the engine loop stopped: {self._error}") from self._error

    def _run(self, build: Callable[[], Any], ready: Future[None]) -> None:
        """Build the engine, then serve commands and step; an error ends the loop and is kept for later calls."""
        try:
            self.engine = build()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while True:
                self._serve_commands()
                if self.engine.has_unfinished_requests():
                    for output in self.engine.step():
                        if output.finished:
                            self._running.discard(output.request_id)
                            self._finished.put(_finished(output))
        except BaseException as error:
            self._error = error

    def _serve_commands(self) -> None:
        """Run all queued commands; while the engine is idle, wait until it has requests."""
        while True:
            try:
                function, future = self._commands.get(block=not self.engine.has_unfinished_requests())
            except queue.Empty:
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


def _sampling_params(request: Request) -> Any:
    from vllm import SamplingParams

    sampling = request.sampling
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=request.seed,
        logprobs=0,
        detokenize=False,
        stop_token_ids=list(request.stop_ids),
    )


def _finished(output: Any) -> Finished:
    answer = output.outputs[0]
    token_ids = list(answer.token_ids)
    logprobs = [position[token].logprob for position, token in zip(answer.logprobs, token_ids, strict=True)]
    versions = [0] * len(token_ids)
    for span in answer.weight_versions or []:
        versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)
    return Finished(output.request_id, token_ids, logprobs, versions, answer.finish_reason)
