"""A model worker that can be told to do wrong: what the run-time checks have to catch."""

import os
from typing import Any

from quadriga.actors.model.worker import ModelWorker, Pass, WorkerResult


class BrokenWorker(ModelWorker):
    """Does as it should until `break_` names a fault."""

    fault = ""

    def break_(self, fault: str) -> int:
        """Begin to go wrong in this way; an empty string ends it. Returns this process's id."""
        self.fault = fault
        if hasattr(self, "_hook"):
            self._hook.remove()
        if fault == "stuck tensor":
            norm = dict(self.model.named_parameters())["model.norm.weight"]
            self._hook = norm.register_hook(lambda gradient: gradient * 0)
        if fault == "nan gradient":
            norm = dict(self.model.named_parameters())["model.norm.weight"]
            self._hook = norm.register_hook(lambda gradient: gradient * float("nan"))
        return os.getpid()

    def weights_to_send(self) -> list[tuple[str, Any]]:
        names = super().weights_to_send()
        if self.fault == "no lm_head":
            return [(name, tensor) for name, tensor in names if name != "lm_head.weight"]
        if self.fault == "swapped":
            swap = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
            return [(name.replace(k := name.split(".")[-2], swap.get(k, k)), tensor) for name, tensor in names]
        return names

    def forward_logprobs(self, batches: Any, temperature: float) -> WorkerResult[Any]:
        result = super().forward_logprobs(batches, temperature)
        if self.fault == "other log-probs":
            result.value = [(logprobs * 1.01, entropy) for logprobs, entropy in result.value]
        return result

    def update(self, passes: list[Pass], lr: float, temperature: float) -> WorkerResult[Any]:
        if self.fault == "other temperature":
            temperature *= 1.1
        return super().update(passes, lr, temperature)


class UnwillingWorker(ModelWorker):
    """Raises an error in each export, as transformers does for settings that it does not write."""

    def export(self, folder: str, kind: str, extra: dict[str, Any]) -> WorkerResult[None]:
        raise ValueError("this cannot be written")
