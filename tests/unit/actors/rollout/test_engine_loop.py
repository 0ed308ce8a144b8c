"""The engine loop, with an engine that is played."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from quadriga.actors.rollout import engine_loop
from quadriga.actors.rollout.engine_loop import EngineLoop, Finished, Request
from quadriga.actors.settings import SamplingSettings


class Engine:
    """Gives every request the tokens 7 and 8 in one step; each step waits for `go`."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.go = threading.Event()
        self.waiting: list[str] = []

    def add_request(self, id: str, prompt: Any, params: Any) -> None:
        self.waiting.append(id)

    def abort_request(self, ids: list[str]) -> None:
        self.waiting = [id for id in self.waiting if id not in ids]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        if not self.go.wait(0.01):
            return []
        ids, self.waiting = self.waiting, []
        if "broken" in ids:
            raise MemoryError("no block left")
        logprobs = [{7: SimpleNamespace(logprob=-0.5)}, {8: SimpleNamespace(logprob=-0.25)}]
        spans = [SimpleNamespace(start=0, end=1, version="3"), SimpleNamespace(start=1, end=2, version="4")]
        answer = SimpleNamespace(token_ids=(7, 8), logprobs=logprobs, weight_versions=spans, finish_reason="stop")
        return [SimpleNamespace(request_id=id, outputs=[answer], finished=True) for id in ids]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> EngineLoop:
    """A loop whose engine waits for `go`; vLLM is not imported."""
    monkeypatch.setattr(engine_loop, "_sampling_params", lambda request: None)
    return EngineLoop(Engine)


@pytest.fixture
def request_named() -> Callable[[str], Request]:
    """A request of this id."""
    return lambda id: Request(id, [1, 2], 0, SamplingSettings(max_tokens=4), (2,))


Named = Callable[[str], Request]


def test_engine_lives_on_the_loops_thread(loop: EngineLoop) -> None:
    assert loop.call(lambda engine: (engine.thread, threading.get_ident())) == (loop.ident, loop.ident)
    assert loop.ident != threading.get_ident()


def test_finished_answer_has_versions_and_logprobs(loop: EngineLoop, request_named: Named) -> None:
    loop.add([request_named("a")])
    loop.engine.go.set()
    assert loop.collect(10) == [Finished("a", [7, 8], [-0.5, -0.25], [3, 4], "stop")]


def test_clear_drops_running_requests(loop: EngineLoop, request_named: Named) -> None:
    loop.add([request_named("a"), request_named("b")])
    loop.clear()
    loop.engine.go.set()
    assert not loop.call(lambda engine: engine.has_unfinished_requests())
    assert loop.collect(0.05) == []


def test_error_of_a_call_is_raised_to_its_caller(loop: EngineLoop) -> None:
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda engine: 1 / 0)
    assert loop.call(lambda engine: 5) == 5


def test_error_of_the_engine_stops_the_loop(loop: EngineLoop, request_named: Named) -> None:
    loop.add([request_named("broken")])
    loop.engine.go.set()
    loop._thread.join(10)
    with pytest.raises(RuntimeError, match="the engine loop stopped: no block left"):
        loop.collect(0)
    with pytest.raises(RuntimeError, match="the engine loop stopped: no block left"):
        loop.call(lambda engine: None)


def test_error_while_building_is_raised() -> None:
    def build() -> Any:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        EngineLoop(build)
