"""The transfer `object_store`: each bucket lies in Ray's object store once, where all workers of a host map it."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from quadriga.actors.transfer_settings import ObjectStore
from quadriga.actors.weights.base import Receiver, Sender


@dataclass(frozen=True)
class Entry:
    """Place of one tensor in a bucket's bytes; offset and size are in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Bucket:
    """Several whole tensors as one run of bytes. payload: uint8 array. checksum: CRC-32 of the payload."""

    entries: tuple[Entry, ...]
    payload: Any
    checksum: int


class ObjectStoreSender(Sender[ObjectStore]):
    """Packs each bucket as one run of bytes with a checksum."""

    def send_bucket(self, tensors: list[tuple[str, torch.Tensor]]) -> int:
        """Send one bucket; return its bytes."""
        import ray

        bucket = pack_bucket(tensors)
        # Stored once, not once per worker, and as a whole: Ray resolves a reference that is itself an argument, not one
        # inside an argument. Pickling leaves the payload in shared memory, which each worker maps instead of copying.
        self.deliver(ray.put(bucket))
        return int(bucket.payload.nbytes)


class ObjectStoreReceiver(Receiver[ObjectStore]):
    """Unpacks buckets."""

    def receive(self, message: Bucket) -> Iterable[tuple[str, torch.Tensor]]:
        """Return a bucket's tensors. Raises RuntimeError if its bytes are not those that were packed."""
        return unpack_bucket(message)


def pack_bucket(tensors: list[tuple[str, torch.Tensor]]) -> Bucket:
    """Copy named tensors into a new bucket."""
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
    """Return the tensors of a bucket by name, as views of one run of bytes.

    Raises RuntimeError if the bytes are not those that were packed.
    """
    if zlib.crc32(bucket.payload) != bucket.checksum:
        names = f"{bucket.entries[0].name} to {bucket.entries[-1].name}"
        raise RuntimeError(f"the weights of {names} arrived damaged: their CRC-32 differs from the sender's")
    # Memory from Ray's object store is read-only, which torch does not wrap: it is copied, other memory is not.
    flat = torch.from_numpy(np.require(bucket.payload, requirements="W"))
    return [
        (e.name, flat[e.offset : e.offset + e.size].view(getattr(torch, e.dtype)).reshape(e.shape))
        for e in bucket.entries
    ]
