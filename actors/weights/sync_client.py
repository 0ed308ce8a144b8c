"""WeightSyncClient: the trainer's side of a weight sync, with a deadline on every call and the workers lost on the way.

The receiving engine is in object_store.py.
"""

from typing import Any

import torch

from quadriga.actors.runtime.remote_calls import gather
from quadriga.actors.settings import DeadlineSettings
from quadriga.actors.weights.bucket import pack_bucket
from quadriga.data.errors import Lost


class WeightSyncClient:
    """Rank 0's connection to the rollout workers: start, buckets, finish.

    A worker that is lost on the way gets nothing more and is reported; the others get everything.
    """

    def __init__(self, workers: dict[str, Any], version: int, deadlines: DeadlineSettings):
        self._workers, self._deadlines = dict(workers), deadlines
        self.version = version
        self.bytes = 0
        self.lost: dict[str, Lost] = {}
        self._started = False

    def send(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """Send one bucket to every worker; return when all have it."""
        import ray

        if not self._started:
            self._call("start_weight_update", self.version)
            self._started = True
        bucket = pack_bucket(tensors)
        self.bytes += bucket.payload.nbytes
        # Stored once, not once per worker, and as a whole: Ray resolves a reference that is itself an argument, not one
        # inside an argument. Pickling leaves the payload in shared memory, which each worker maps instead of copying.
        self._call("receive_bucket", ray.put(bucket))

    def finish(self) -> tuple[int, dict[str, Lost]]:
        """Commit the version on every worker; return the bytes sent to each, and losses by worker name."""
        self._call("finish_weight_update")
        return self.bytes, self.lost

    def _call(self, method: str, *arguments: Any) -> None:
        """Call a method of every worker that is not lost, and note those that are lost now."""
        refs = {name: getattr(worker, method).remote(*arguments) for name, worker in self._workers.items()}
        _, lost = gather(refs, "sync", self._deadlines.call, self._workers, self._deadlines.heartbeat)
        self.lost |= lost
        self._workers = {name: worker for name, worker in self._workers.items() if name not in lost}
