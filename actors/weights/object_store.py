"""ObjectStoreEngine: vLLM's receiving side of a sync, registered as `object_store` when this file is imported.

A sync is complete when every bucket's checksum matches and every vLLM module has loaded all of its elements; the
trainer then compares log-probs. vLLM itself checks none of this: a tensor that does not arrive keeps its old values.
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
    """Nothing: buckets come as arguments, so no connection is set up."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket of weights."""

    bucket: Bucket | None = None


class ObjectStoreEngine(WeightTransferEngine):
    """Layerwise reload from buckets, with the check for completeness that vLLM leaves out."""

    init_info_cls, update_info_cls = InitInfo, UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Do nothing: there is no connection."""

    def start_weight_update(self) -> None:
        """Prepare to rebuild every layer from the tensors to come: on CPU, linear layers are pre-packed."""
        self._buckets: list[Any] = []
        initialize_layerwise_reload(self.model)
        self._expected = {
            name: size for name, layer in self.model.named_modules() if (size := _loadable_elements(layer))
        }

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket. The base class would synchronise an accelerator, which a CPU engine does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load one bucket and keep its memory until the update is finished, since vLLM keeps references into it."""
        assert update_info.bucket is not None
        tensors = unpack_bucket(update_info.bucket)
        self._buckets.append(tensors)
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in tensors)

    def finish_weight_update(self) -> None:
        """Finish the update. Raises RuntimeError naming modules that did not receive all of their elements."""
        missing = []
        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            if name in self._expected and info.can_load() and info.load_numel < self._expected[name]:
                missing.append(f"{name} ({info.load_numel:,} of {self._expected[name]:,} elements)")
        finalize_layerwise_reload(self.model, self.model_config)
        self._buckets = []
        if missing:
            raise RuntimeError(f"the sync left weights out: {', '.join(missing[:4])}{' ...' if missing[4:] else ''}")

    def shutdown(self) -> None:
        """Do nothing: there is nothing to release."""


def _loadable_elements(layer: torch.nn.Module) -> int:
    """Return how many elements of a layer's own parameters a checkpoint fills, without vLLM's vocabulary padding."""
    if hasattr(layer, "shard_indices"):
        return int(layer.shard_indices.num_org_elements * layer.embedding_dim)  # type: ignore[union-attr, operator]
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreEngine)
