"""Whole tensors, bucket by bucket, out of a ZeRO-partitioned model or a folder: the one way weights leave a worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def named_weights(model: Any) -> list[tuple[str, Any]]:
    """Every tensor of the exported model, tied ones under each of their names.

    `named_parameters()` drops a tied `lm_head.weight`; an engine that is not told of it keeps its old head in silence.
    """
    return list(model.named_parameters(remove_duplicate=False))


def full_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole tensor, also where ZeRO-3 holds only a slice."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def buckets(names: list[tuple[str, Any]], bucket_bytes: int) -> list[list[tuple[str, Any]]]:
    """Cut the tensors into buckets of about `bucket_bytes`, never inside a block such as one layer's attention.

    An engine that fuses q/k/v or gate/up waits for a whole block; a cut through it would only keep more memory alive.
    """
    blocks: dict[str, list[tuple[str, Any]]] = {}
    for name, parameter in names:
        blocks.setdefault(".".join(name.split(".")[:-2]), []).append((name, parameter))
    result: list[list[tuple[str, Any]]] = []
    room = 0
    for block in blocks.values():
        size = sum(_bytes(parameter) for _, parameter in block)
        if not result or size > room:
            result.append([])
            room = bucket_bytes
        result[-1] += block
        room -= size
    return result


def gathered_buckets(
    model: Any, bucket_bytes: int, names: list[tuple[str, Any]] | None = None
) -> Iterator[list[tuple[str, Any]]]:
    """Whole tensors, a bucket at a time; every rank must exhaust this together (each bucket is one collective gather).

    The tensors are valid until the next bucket is asked for.
    """
    import torch

    for bucket in buckets(named_weights(model) if names is None else names, bucket_bytes):
        partitioned = list({id(p): p for _, p in bucket if hasattr(p, "ds_id")}.values())
        if not partitioned:
            yield [(name, parameter.detach()) for name, parameter in bucket]
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters(partitioned), torch.no_grad():
            yield [(name, parameter.detach()) for name, parameter in bucket]


def folder_tensors(path: str | Path) -> list[tuple[str, Any]]:
    """The tensors of a model folder, a tied `lm_head.weight` included."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        tensors |= load_file(file)
    if json.loads((Path(path) / "config.json").read_text()).get("tie_word_embeddings"):
        embedding = next(t for n, t in tensors.items() if n.endswith(("embed_tokens.weight", "wte.weight")))
        tensors.setdefault("lm_head.weight", embedding)
    return list(tensors.items())


def _bytes(parameter: Any) -> int:
    count = 1
    for size in full_shape(parameter):
        count *= size
    return count * parameter.element_size()
