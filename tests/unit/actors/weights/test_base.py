"""What a sender does for every transfer: order of calls, losses, newcomers, ranks."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from quadriga.actors.settings import DeadlineSettings
from quadriga.actors.transfer_settings import ObjectStore
from quadriga.actors.weights import base
from quadriga.actors.weights.base import Sender
from quadriga.data.errors import Lost

BUCKETS = [[("a", torch.zeros(3))], [("b", torch.zeros(4)), ("c", torch.zeros(5))]]


class Worker:
    """Notes the calls of its methods; those in `failing` end in a loss."""

    def __init__(self, *failing: str):
        self.failing, self.calls = failing, list[tuple[Any, ...]]()

    def __getattr__(self, method: str) -> Any:
        class Method:
            @staticmethod
            def remote(*arguments: Any) -> bool:
                self.calls.append((method, *arguments))
                return method not in self.failing

        return Method


class Names(Sender[ObjectStore]):
    """Sends names instead of tensors, and notes whom it attached."""

    attached: list[list[str]]

    def attach(self, workers: dict[str, Any]) -> None:
        self.attached = [*getattr(self, "attached", []), sorted(workers)]

    def send_bucket(self, tensors: list[tuple[str, torch.Tensor]]) -> int:
        self.deliver([name for name, _ in tensors])
        return len(tensors)


@pytest.fixture(autouse=True)
def local_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that have ended at once; their value says whether they succeeded."""

    def gather(refs: Mapping[str, bool], phase: str, *limits: Any) -> tuple[dict[str, Any], dict[str, Lost]]:
        lost = {name: Lost("failed", phase=phase, process=name) for name, succeeded in refs.items() if not succeeded}
        return {name: None for name in refs if name not in lost}, lost

    monkeypatch.setattr(base, "gather", gather)


def sender(rank: int = 0) -> Names:
    return Names(ObjectStore(), rank, DeadlineSettings())


def test_a_sync_is_a_start_messages_and_a_finish() -> None:
    worker = Worker()
    assert sender().send(7, {"rollout 0": worker}, BUCKETS) == (3, {})
    assert worker.calls == [
        ("start_weight_update", 7),
        ("receive_weights", ["a"]),
        ("receive_weights", ["b", "c"]),
        ("finish_weight_update",),
    ]


def test_a_lost_worker_gets_nothing_more_and_others_all() -> None:
    lost, other = Worker("receive_weights"), Worker()
    _, losses = sender().send(7, {"rollout 0": lost, "rollout 1": other}, BUCKETS)
    assert list(losses) == ["rollout 0"]
    assert lost.calls == other.calls[:2]
    assert len(other.calls) == 4


def test_losses_are_those_of_one_sync() -> None:
    names, lost = sender(), Worker("finish_weight_update")
    assert list(names.send(1, {"rollout 0": lost}, BUCKETS)[1]) == ["rollout 0"]
    assert names.send(2, {"rollout 0": Worker()}, BUCKETS) == (3, {})


def test_new_and_replaced_workers_are_attached_once() -> None:
    names, first, second, replacement = sender(), Worker(), Worker(), Worker()
    for version, workers in enumerate(
        [
            {"rollout 0": first},
            {"rollout 0": first, "rollout 1": second},
            {"rollout 0": replacement, "rollout 1": second},
            {"rollout 0": replacement, "rollout 1": second},
        ]
    ):
        names.send(version, workers, BUCKETS)
    assert names.attached == [["rollout 0"], ["rollout 1"], ["rollout 0"]]


def test_other_ranks_gather_to_the_end_and_send_nothing() -> None:
    worker, gathered = Worker(), iter(BUCKETS)
    assert sender(rank=1).send(7, {"rollout 0": worker}, gathered) == (0, {})
    assert next(gathered, None) is None
    assert worker.calls == []
