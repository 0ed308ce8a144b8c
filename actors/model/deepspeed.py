"""DeepSpeed as a sharding engine: its configuration, its start, and the few calls we make of it.

Imported inside actors only. The framework owns the accumulation boundary (`managed_gradient_accumulation: false`):
every `step()` is one, whatever number of micro-batches came before.
"""

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

from quadriga.actors.runtime.device import communication_backend
from quadriga.actors.settings import ClusterSettings, ModelWorkerSettings, OptimizerSettings
from quadriga.data.errors import UserError

OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def deepspeed_config(
    cluster: ClusterSettings, host: ModelWorkerSettings, optimizer: OptimizerSettings | None, device: str
) -> dict[str, Any]:
    """The DeepSpeed JSON of one host, with the user's `cluster.deepspeed` merged over it.

    Raises UserError where the user's keys would decide batch size or accumulation, which are ours.
    """
    taken = [key for key in OURS if key in cluster.deepspeed]
    if taken:
        raise UserError(
            f"cluster.deepspeed must not set {', '.join(taken)}: batches and clipping are set by the stage."
        )
    # Without an optimizer only stage 3 shards anything.
    stage = host.zero_stage if optimizer is not None or host.zero_stage == 3 else 0
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": cluster.persistence_threshold}
    if device == "cuda" and host.offload != "none":
        if optimizer is not None:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if host.offload == "all" and stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "gradient_clipping": optimizer.max_grad_norm if optimizer else 0.0,
    }
    if cluster.dtype == "bfloat16":
        # Stages 1 and 2 would otherwise apply gradients that are not finite.
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, cluster.deepspeed)


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in extra.items():
        result[key] = (
            _merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
        )
    return result


class NonFiniteGradient(ArithmeticError):
    """The global gradient norm of a step is inf or nan."""


class ZeroEngine:
    """One rank of a ZeRO-partitioned model."""

    def __init__(
        self, load: Callable[[], Any], config: dict[str, Any], optimizer: OptimizerSettings | None, device: str
    ):
        import deepspeed
        import deepspeed.ops
        import torch

        # Its shared-memory collective is compiled at first use (35 s) and its peers spin when a rank dies.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        deepspeed.init_distributed(dist_backend=communication_backend(device), verbose=False)
        self.world = int(os.environ["WORLD_SIZE"])
        self.stage = config["zero_optimization"]["stage"]
        self._deepspeed = deepspeed
        if self.stage == 3:
            from transformers.integrations import HfDeepSpeedConfig

            self._keep = HfDeepSpeedConfig(config)  # from_pretrained partitions while this object lives
        model = load()
        client = None
        if optimizer is not None:
            groups = _decay_groups(model, optimizer.weight_decay)
            client = torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=client, config=config)
        self.module: Any = self.engine.module
        self._max_norm = config["gradient_clipping"]
        self._clipped_norm = 0.0
        # Without ZeRO, in float32, DeepSpeed clips but does not tell the norm.
        self.engine.clip_fp32_gradients = self._clip

    def backward(self, loss: Any) -> None:
        """Accumulate the gradients of one micro-batch."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Clip, apply AdamW at this learning rate; returns the global gradient norm before clipping.

        Raises NonFiniteGradient, on every rank alike and with no weight changed, where that norm is inf or nan.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        # DeepSpeed itself skips such a step, without a word.
        if getattr(self.engine.optimizer, "overflow", False) or (norm is not None and not math.isfinite(norm)):
            raise NonFiniteGradient
        return float(self._clipped_norm if norm is None else norm)

    def _clip(self) -> None:
        """Stand in for DeepSpeed's clipping, which goes on to apply a norm that is not finite."""
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._max_norm)
        self._clipped_norm = float(norm)
        if not math.isfinite(self._clipped_norm):
            raise NonFiniteGradient

    def fingerprints(self) -> dict[str, tuple[str, float]]:
        """For each trainable tensor: a hash of (this rank's part of) its fp32 master, and its largest magnitude."""
        result = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                part = self._master(parameter).detach().float().cpu().contiguous()
                digest = hashlib.blake2b(part.numpy().tobytes(), digest_size=16).hexdigest()
                result[name] = (digest, float(part.abs().max()) if part.numel() else 0.0)
        return result

    def _master(self, parameter: Any) -> Any:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

        if self.stage == 3:
            return safe_get_local_fp32_param(parameter)
        if self.stage == 0:
            return getattr(parameter, "_hp_param", parameter)
        return safe_get_full_fp32_param(parameter)

    def partitioned(self) -> tuple[int, int]:
        """(tensors that are partitioned, tensors in all)."""
        parameters = list(self.module.parameters())
        whole = [p for p in parameters if getattr(p, "ds_persist", True)]
        return len(parameters) - len(whole), len(parameters)

    def save(self, folder: str) -> None:
        """Every rank writes its part under folder/state."""
        self.engine.save_checkpoint(folder, "state", save_latest=False)

    def optimizer_steps(self) -> int:
        """Steps that the optimizer's bias correction knows of; 0 before the first."""
        return max((int(state["step"]) for state in self._optimizer_states() if "step" in state), default=0)

    def load_universal(self, folder: str, optimizer_steps: int) -> None:
        """`load` of shards that were written by another number of ranks and converted to DeepSpeed's universal format.

        It holds weights and moments. The count of steps, which bias correction needs, comes from elsewhere, and the
        weight decay of each parameter group stays ours: DeepSpeed gives all groups that of the first.
        """
        groups = self.engine.optimizer.param_groups
        ours = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        self.engine._config.load_universal_checkpoint = True
        self.load(folder)
        self.engine._config.load_universal_checkpoint = False
        for group, settings in zip(self.engine.optimizer.param_groups, ours, strict=True):
            group.update(settings)
        for state in self._optimizer_states():
            state["step"] = state["step"].new_tensor(optimizer_steps)

    def _optimizer_states(self) -> list[dict[str, Any]]:
        optimizer = self.engine.optimizer
        return list(getattr(optimizer, "optimizer", optimizer).state.values())

    def load(self, folder: str) -> None:
        """Every rank reads its part back; raises RuntimeError where something is missing."""
        path, _ = self.engine.load_checkpoint(folder, "state")
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")


def _decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices only: biases and norm scales are left alone, as is usual since GPT-2."""
    from quadriga.actors.weights.source import full_shape

    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if len(full_shape(p)) >= 2]
    vectors = [p for p in trainable if len(full_shape(p)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
