"""vLLM's receiving side of a sync: the `object_store` engine in its weight-transfer registry (registered by import).

A sync is good when every bucket's checksum matches and every vLLM module reports all of its elements loaded; the
trainer then compares log-probs. vLLM itself checks none of this: what did not arrive keeps its old value.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from quadriga.actors.weights.bucket import Bucket, unpack_bucket

BACKEND = "object_store"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to set up: buckets come as arguments."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket."""

    bucket: Bucket | None = None


class ObjectStoreEngine(WeightTransferEngine):
    """vLLM's side: layerwise reload from buckets, with the check that vLLM leaves out."""

    init_info_cls, update_info_cls = InitInfo, UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """No connection is made."""

    def start_weight_update(self) -> None:
        """Begin: the CPU linear layers are pre-packed, so every layer is rebuilt from what arrives."""
        self._alive: list[Any] = []
        initialize_layerwise_reload(self.model)
        self._expected = {name: size for name, layer in self.model.named_modules() if (size := _loadable(layer))}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """One bucket. The base class would synchronise an accelerator that a CPU engine does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load a bucket; its memory stays alive until the end, since vLLM keeps references into it."""
        assert update_info.bucket is not None
        tensors = unpack_bucket(update_info.bucket)
        self._alive.append(tensors)
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in tensors)

    def finish_weight_update(self) -> None:
        """End: every module must have received every element.

        Raises RuntimeError naming the modules that did not.
        """
        missing = []
        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            if name in self._expected and info.can_load() and info.load_numel < self._expected[name]:
                missing.append(f"{name} ({info.load_numel:,} of {self._expected[name]:,} elements)")
        finalize_layerwise_reload(self.model, self.model_config)
        self._alive = []
        if missing:
            raise RuntimeError(f"the sync left weights out: {', '.join(missing[:4])}{' ...' if missing[4:] else ''}")

    def shutdown(self) -> None:
        """Nothing to release."""


def _loadable(layer: torch.nn.Module) -> int:
    """Elements of a layer's own parameters that a checkpoint fills (vLLM pads vocabularies)."""
    if hasattr(layer, "shard_indices"):
        return int(layer.shard_indices.num_org_elements * layer.embedding_dim)  # type: ignore[union-attr, operator]
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreEngine)
