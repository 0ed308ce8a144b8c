"""One thread that owns vLLM's engine; everything else asks it.

Requests, aborts and weight updates reach the engine between its steps only, so weights never change under a step.
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
