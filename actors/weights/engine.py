"""TransferEngine: vLLM's side of a sync, the same for every transfer, registered when this file is imported.

A sync is complete when the receiver accepted every message and every vLLM module has loaded all of its elements; the
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

from quadriga.actors.transfer_settings import TransferSettings
from quadriga.actors.weights.base import Receiver
from quadriga.actors.weights.source import folder_tensors
from quadriga.data.registry import import_object

BACKEND = "quadriga"
EXTENSION = f"{__name__}.Extension"
"""vLLM's `worker_extension_cls`, by which every process of an engine imports this file."""


class Extension:
    """Adds nothing to vLLM's worker."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    """The transfer whose receiver is to be made."""

    transfer: TransferSettings


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """A message for the receiver, or a model folder to load without one."""

    message: Any = None
    folder: str | None = None


class TransferEngine(WeightTransferEngine):
    """Layerwise reload of what a receiver returns, with the check for completeness that vLLM leaves out."""

    init_info_cls, update_info_cls = InitInfo, UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Make the receiver."""
        transfer = init_info.transfer
        self._receiver: Receiver[Any] = import_object(transfer.receiver)(transfer, self.device)

    def start_weight_update(self) -> None:
        """Prepare to rebuild every layer from the tensors to come: on CPU, linear layers are pre-packed."""
        self._tensors: list[Any] = []
        self._head_bias: Any = None
        if self.device.type == "cpu":
            for layer in self.model.modules():
                # A kernel that exists is given new weights as they are, although on CPU it computes with packed ones.
                if getattr(getattr(layer, "quant_method", None), "moe_kernel", None) is not None:
                    layer.quant_method.moe_kernel = None
        initialize_layerwise_reload(self.model)
        self._expected = {
            name: size for name, layer in self.model.named_modules() if (size := _loadable_elements(layer))
        }

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one message. The base class would synchronise an accelerator, which a CPU engine does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load one message and keep its tensors until the update is finished, since vLLM keeps references to them."""
        folder = update_info.folder
        tensors = list(folder_tensors(folder) if folder else self._receiver.receive(update_info.message))
        self._tensors.append(tensors)
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in tensors if self._takes(name, tensor))

    def _takes(self, name: str, tensor: Any) -> bool:
        """Return whether the model loads a tensor: not a tied head that it does not have, nor a bias that comes last.

        vLLM's backend for transformers' models makes the bias of a head while it loads; a reload would drop it again.
        """
        head = getattr(self.model, "lm_head", None)
        if name == "lm_head.bias" and head is not None and not head.has_bias:
            self._head_bias = tensor
            return False
        return name != "lm_head.weight" or head is not None

    def finish_weight_update(self) -> None:
        """Finish the update. Raises RuntimeError naming modules that did not receive all of their elements."""
        missing = []
        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            if name in self._expected and info.can_load() and info.load_numel < self._expected[name]:
                missing.append(f"{name} ({info.load_numel:,} of {self._expected[name]:,} elements)")
        finalize_layerwise_reload(self.model, self.model_config)
        if self._head_bias is not None:
            head = self.model.lm_head
            if getattr(head, "bias", None) is None:
                with torch.device(self.device):
                    head._register_bias()
            head.bias.weight_loader(head.bias, self._head_bias.to(self.device))
        self._tensors = []
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
    WeightTransferEngineFactory.register_engine(BACKEND, TransferEngine)
