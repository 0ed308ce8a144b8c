"""Weights as whole tensors, bucket by bucket, from a ZeRO-partitioned model or a model folder.

Syncs and exports both read weights here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def named_weights(model: Any) -> list[tuple[str, Any]]:
    """Return every parameter of a model by name, tied ones under each of their names, and its persistent buffers.

    `named_parameters()` drops a tied `lm_head.weight`; an engine that does not receive it silently keeps its old head.
    """
    return [*model.named_parameters(remove_duplicate=False), *persistent_buffers(model)]


def persistent_buffers(model: Any) -> list[tuple[str, Any]]:
    """Return the state of a model that is not trained but saved, such as the expert biases of DeepSeek-V3."""
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def saved_form(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Return whole tensors under the names, and cut, that files of the model's family have.

    transformers keeps the experts of a layer as one tensor, and files hold one per expert. tensors: by parameter name.
    """
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    source = getattr(model, "base", model)
    if not isinstance(source, PreTrainedModel):
        return tensors
    source._weight_conversions = None  # that of the folder: names of one that was saved otherwise are not repeated
    return dict(revert_weight_conversion(source, tensors))


def full_shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of the whole tensor, even if ZeRO-3 keeps only a slice of it here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def buckets(names: list[tuple[str, Any]], bucket_bytes: int) -> list[list[tuple[str, Any]]]:
    """Divide tensors into buckets of about `bucket_bytes`, never inside a block such as one layer's attention.

    An engine that fuses q/k/v or gate/up waits for a whole block; dividing one would only keep more memory alive.
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
    """Yield buckets of whole tensors; names: the parameters to gather, by default `named_weights`.

    Every bucket is a collective gather, so all ranks must iterate to the end together. Its tensors are valid until the
    next bucket is requested.
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
    """Return the tensors of a model folder by name, including a tied `lm_head.weight`."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        tensors |= load_file(file)
    if json.loads((Path(path) / "config.json").read_text()).get("tie_word_embeddings"):
        embedding = next(t for n, t in tensors.items() if n.endswith(("embed_tokens.weight", "wte.weight")))
        tensors.setdefault("lm_head.weight", embedding)
    return list(tensors.items())


def _bytes(parameter: Any) -> int:
    """Return the size of the whole tensor in bytes."""
    count = 1
    for size in full_shape(parameter):
        count *= size
    return count * parameter.element_size()
