"""Buckets of weights and the trainer's side of a sync: what is sent, with which checksum, to whom, by when.

Free of vLLM, so that model hosts need not import it; the receiving engine is in rollout_engine.py.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadriga.actors.runtime.remote_calls import gather
from quadriga.actors.settings import DeadlineSettings
from quadriga.data.errors import Lost


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a bucket's bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Bucket:
    """Several whole tensors as one run of bytes. `payload` is a uint8 array (or, on the wire, a reference to one)."""

    entries: tuple[Entry, ...]
    payload: Any
    checksum: int


def pack_bucket(tensors: list[tuple[str, torch.Tensor]]) -> Bucket:
    """Copy tensors into fresh memory with a CRC-32 of the bytes."""
    entries, offset = [], 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        entries.append(Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset, size))
        offset += -(-size // 64) * 64
    payload = np.zeros(offset, np.uint8)
    for entry, (_, tensor) in zip(entries, tensors, strict=True):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        payload[entry.offset : entry.offset + entry.size] = flat.numpy()
    return Bucket(tuple(entries), payload, zlib.crc32(payload.data))


def unpack_bucket(bucket: Bucket) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a bucket, as views of one run of bytes.

    Raises RuntimeError if the bytes are not those that were sent.
    """
    if zlib.crc32(bucket.payload) != bucket.checksum:
        names = f"{bucket.entries[0].name} to {bucket.entries[-1].name}"
        raise RuntimeError(f"the weights of {names} arrived damaged: their CRC-32 differs from the sender's")
    # The object store hands out read-only memory, which torch will not wrap: copied only then.
    flat = torch.from_numpy(np.require(bucket.payload, requirements="W"))
    return [
        (e.name, flat[e.offset : e.offset + e.size].view(getattr(torch, e.dtype)).reshape(e.shape))
        for e in bucket.entries
    ]


class WeightSyncClient:
    """Rank 0's line to the rollout workers: start, buckets, finish; every call has a deadline.

    A worker that is lost on the way gets nothing more and is reported; the others get everything.
    """

    def __init__(self, workers: dict[str, Any], version: int, deadlines: DeadlineSettings):
        self._workers, self._deadlines = dict(workers), deadlines
        self.version = version
        self.bytes = 0
        self.lost: dict[str, Lost] = {}
        self._started = False

    def send(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """One bucket to every worker; returns when all have it."""
        import ray

        if not self._started:
            self._call("start_weight_update", self.version)
            self._started = True
        bucket = pack_bucket(tensors)
        self.bytes += bucket.payload.nbytes
        # The payload travels once as an object of its own; each worker maps it instead of copying.
        self._call("receive_bucket", bucket.entries, bucket.checksum, ray.put(bucket.payload))

    def finish(self) -> tuple[int, dict[str, Lost]]:
        """Commit the version on every worker; returns the bytes sent to each, and who was lost."""
        self._call("finish_weight_update")
        return self.bytes, self.lost

    def _call(self, method: str, *arguments: Any) -> None:
        refs = {name: getattr(worker, method).remote(*arguments) for name, worker in self._workers.items()}
        _, lost = gather(refs, "sync", self._deadlines.call, self._workers, self._deadlines.heartbeat)
        self.lost |= lost
        self._workers = {name: worker for name, worker in self._workers.items() if name not in lost}


def folder_tensors(path: str | Path) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a model folder, a tied `lm_head.weight` included."""
    import json

    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        tensors |= load_file(file)
    if json.loads((Path(path) / "config.json").read_text()).get("tie_word_embeddings"):
        embedding = next(t for n, t in tensors.items() if n.endswith(("embed_tokens.weight", "wte.weight")))
        tensors.setdefault("lm_head.weight", embedding)
    return list(tensors.items())
