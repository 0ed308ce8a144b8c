"""Buckets of weights: several whole tensors as one run of bytes with a checksum.

This file does not import vLLM, which model workers do not need.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


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
