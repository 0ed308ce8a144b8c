"""Sender and Receiver: the two sides of a weight transfer, one in the model workers and one in the engines.

This file imports neither torch nor vLLM: a driver imports a user's transfer when it reads the config.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from quadriga.actors.runtime.remote_calls import gather
from quadriga.actors.settings import DeadlineSettings
from quadriga.actors.transfer_settings import TransferSettings
from quadriga.data.errors import Lost

if TYPE_CHECKING:
    import torch

S = TypeVar("S", bound=TransferSettings)


class Sender(ABC, Generic[S]):
    """The trainer's side of a transfer: one in each rank of the model, made at its first sync and kept.

    Rank 0's is connected to the rollout workers, with a deadline on every call. A worker that is lost on the way gets
    nothing more and is reported; the others get everything.
    """

    def __init__(self, settings: S, rank: int, deadlines: DeadlineSettings):
        self.settings, self.rank, self.deadlines = settings, rank, deadlines
        self.workers: dict[str, Any] = {}
        """The rollout workers of this sync that are not lost, name -> handle. Empty on ranks other than 0."""
        self._lost: dict[str, Lost] = {}
        self._attached: dict[str, Any] = {}

    @abstractmethod
    def send_bucket(self, tensors: list[tuple[str, "torch.Tensor"]]) -> int:
        """Send some of the model's tensors, whole and by name, to every worker; return the bytes sent to each.

        Called on rank 0 only. The tensors are valid until it returns.
        """

    def attach(self, workers: dict[str, Any]) -> None:
        """Prepare to send to workers (name -> handle) that are new or replace lost ones; by default, do nothing.

        Called on rank 0 only, before the first bucket that they get.
        """

    def deliver(self, message: Any) -> None:
        """Give a message to `Receiver.receive` in every process of every worker; return when all have loaded it.

        message: anything that Ray can send. A reference from `ray.put` arrives as its object.
        """
        self._call("receive_weights", message)

    def send(
        self, version: int, workers: dict[str, Any], buckets: Iterable[list[tuple[str, "torch.Tensor"]]]
    ) -> tuple[int, dict[str, Lost]]:
        """Send a version of the whole model to workers (name -> handle), bucket by bucket.

        Every rank takes part: each bucket is a collective gather. Returns the bytes sent to each worker, and losses by
        worker name; ranks other than 0 return (0, {}).
        """
        sent, started = 0, False
        self._lost = {}
        for tensors in buckets:
            if self.rank > 0:
                continue
            if not started:
                self._start(version, workers)
                started = True
            sent += self.send_bucket(tensors)
        if started:
            self._call("finish_weight_update")
        return sent, self._lost

    def _start(self, version: int, workers: dict[str, Any]) -> None:
        """Have the workers begin an update, and attach those that this sender has not sent to."""
        self.workers = dict(workers)
        self._call("start_weight_update", version)
        new = {name: handle for name, handle in self.workers.items() if self._attached.get(name) != handle}
        if new:
            self.attach(new)
            self._attached |= new

    def _call(self, method: str, *arguments: Any) -> None:
        """Call a method of every worker that is not lost, and note those that are lost now."""
        refs = {name: getattr(worker, method).remote(*arguments) for name, worker in self.workers.items()}
        _, lost = gather(refs, "sync", self.deadlines.call, self.workers, self.deadlines.heartbeat)
        self._lost |= lost
        self.workers = {name: worker for name, worker in self.workers.items() if name not in lost}


class Receiver(ABC, Generic[S]):
    """The engine's side of a transfer: one in every process of a vLLM engine, made when the engine has started.

    device: where the process computes.
    """

    def __init__(self, settings: S, device: "torch.device"):
        self.settings, self.device = settings, device

    @abstractmethod
    def receive(self, message: Any) -> Iterable[tuple[str, "torch.Tensor"]]:
        """Return the whole tensors that a message of the sender brings, by the names that the sender got.

        Nothing may write to their memory before the sync has ended: vLLM keeps references into it. Raise RuntimeError
        if the message arrived damaged; the worker is then replaced. That every tensor arrived is checked elsewhere.
        """
