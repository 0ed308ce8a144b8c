"""DeepSpeed as a sharding engine: its configuration, its start, and the few of its calls that are used.

DeepSpeed is imported inside actors only. We, not DeepSpeed, decide where an optimizer step ends
(`managed_gradient_accumulation: false`): at every `step()`, however many micro-batches came before.
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

RESERVED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


def deepspeed_config(
    cluster: ClusterSettings, worker: ModelWorkerSettings, optimizer: OptimizerSettings | None, device: str
) -> dict[str, Any]:
    """Return DeepSpeed's configuration of one model worker, with the user's `cluster.deepspeed` merged over it.

    optimizer: None for a model that is not trained. Raises UserError for keys that the stage sets: batch sizes,
    accumulation and clipping.
    """
    taken = [key for key in RESERVED_KEYS if key in cluster.deepspeed]
    if taken:
        raise UserError(
            f"cluster.deepspeed must not set {', '.join(taken)}: batches and clipping are set by the stage."
        )
    chosen = cluster.on(device)
    # Without an optimizer only stage 3 shards anything.
    stage = worker.zero_stage if optimizer is not None or worker.zero_stage == 3 else 0
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": chosen.persistence_threshold}
    if device == "cuda" and worker.offload != "none":
        if optimizer is not None:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if worker.offload == "all" and stage == 3:
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
    if chosen.dtype == "bfloat16":
        # Stages 1 and 2 would otherwise apply gradients that are not finite.
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, cluster.deepspeed)


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Return `base` updated by `extra`, mappings key by key."""
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
        """Join the process group, load the model and partition it; the group's ranks do so together.

        load: returns the model. config: from `deepspeed_config`. optimizer: None for a model that is not trained.
        """
        import deepspeed
        import deepspeed.ops
        import torch

        # DeepSpeed's shared-memory collective takes 35 s to compile at first use, and ranks spin when a peer dies.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        deepspeed.init_distributed(dist_backend=communication_backend(device), verbose=False)
        self.world = int(os.environ["WORLD_SIZE"])
        self.stage = config["zero_optimization"]["stage"]
        self._deepspeed = deepspeed
        if self.stage == 3:
            from transformers.integrations import HfDeepSpeedConfig

            self._partition_on_load = HfDeepSpeedConfig(config)  # from_pretrained partitions while it is alive
        model = load()
        adamw = None
        if optimizer is not None:
            groups = _decay_groups(model, optimizer.weight_decay)
            adamw = torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=config)
        self.module: Any = self.engine.module
        self._max_norm = config["gradient_clipping"]
        self._clipped_norm = 0.0
        # Without ZeRO, in float32, DeepSpeed clips but does not report the norm.
        self.engine.clip_fp32_gradients = self._clip

    def backward(self, loss: Any) -> None:
        """Accumulate the gradients of one micro-batch."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Clip and apply AdamW at this learning rate; return the global gradient norm before clipping.

        Raises NonFiniteGradient, on every rank and before any weight changes, if that norm is inf or nan.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        # DeepSpeed itself silently skips such a step.
        if getattr(self.engine.optimizer, "overflow", False) or (norm is not None and not math.isfinite(norm)):
            raise NonFiniteGradient
        return float(self._clipped_norm if norm is None else norm)

    def _clip(self) -> None:
        """Replace DeepSpeed's clipping, which applies gradients even if their norm is not finite."""
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._max_norm)
        self._clipped_norm = float(norm)
        if not math.isfinite(self._clipped_norm):
            raise NonFiniteGradient

    def fingerprints(self) -> dict[str, tuple[str, float]]:
        """Return, per trainable tensor, a hash and the largest magnitude of this rank's part of its fp32 master."""
        result = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                part = self._master(parameter).detach().float().cpu().contiguous()
                digest = hashlib.blake2b(part.numpy().tobytes(), digest_size=16).hexdigest()
                result[name] = (digest, float(part.abs().max()) if part.numel() else 0.0)
        return result

    def _master(self, parameter: Any) -> Any:
        """Return this rank's part of a parameter's fp32 master."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

        if self.stage == 3:
            return safe_get_local_fp32_param(parameter)
        if self.stage == 0:
            return getattr(parameter, "_hp_param", parameter)
        return safe_get_full_fp32_param(parameter)

    def partitioned(self) -> tuple[int, int]:
        """Return the number of partitioned tensors and of all tensors."""
        parameters = list(self.module.parameters())
        whole = [p for p in parameters if getattr(p, "ds_persist", True)]
        return len(parameters) - len(whole), len(parameters)

    def save(self, folder: str) -> None:
        """Write this rank's part under folder/state; all ranks must do so together."""
        self.engine.save_checkpoint(folder, "state", save_latest=False)

    def optimizer_steps(self) -> int:
        """Return the number of steps that the optimizer's bias correction has counted."""
        return max((int(state["step"]) for state in self._optimizer_states() if "step" in state), default=0)

    def load_universal(self, folder: str, optimizer_steps: int) -> None:
        """Load shards that another number of ranks wrote, converted to DeepSpeed's universal format.

        These hold weights and moments, but not the count of steps for bias correction, so `optimizer_steps` gives it.
        The settings of each parameter group are restored, because DeepSpeed gives all groups the weight decay of the
        first.
        """
        groups = self.engine.optimizer.param_groups
        before = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        self.engine._config.load_universal_checkpoint = True
        self.load(folder)
        self.engine._config.load_universal_checkpoint = False
        for group, settings in zip(self.engine.optimizer.param_groups, before, strict=True):
            group.update(settings)
        for state in self._optimizer_states():
            state["step"] = state["step"].new_tensor(optimizer_steps)

    def _optimizer_states(self) -> list[dict[str, Any]]:
        optimizer = self.engine.optimizer
        return list(getattr(optimizer, "optimizer", optimizer).state.values())

    def load(self, folder: str) -> None:
        """Read this rank's part back; all ranks must do so together. Raises RuntimeError if there is none."""
        path, _ = self.engine.load_checkpoint(folder, "state")
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")


def _decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups that decay matrices only, not biases and norm scales, as is usual since GPT-2."""
    from quadriga.actors.weights.source import full_shape

    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if len(full_shape(p)) >= 2]
    vectors = [p for p in trainable if len(full_shape(p)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
