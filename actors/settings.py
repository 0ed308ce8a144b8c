"""`cluster:`, everything that depends on hardware: placement, ranks, precision, memory budgets, deadlines."""

from typing import Any, Literal

from pydantic import Field

from quadriga.data.settings import Settings

Role = Literal["actor", "critic", "reference", "reward"]


class HostSettings(Settings):
    """One model's ranks."""

    ranks: int = Field(1, ge=1)
    """ZeRO data-parallel processes of this model."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a rank; null: cores divided by what runs at the same time."""
    gpus: float = Field(1.0, ge=0)
    """GPUs of a rank (a fraction shares one). Has no effect on `device: cpu`."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer states (or parameters too) in host memory. Has no effect on `device: cpu`."""


class RolloutSettings(Settings):
    """The vLLM workers."""

    workers: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    """CPU threads of a worker. 1 keeps answers bit-identical however requests are batched."""
    gpus: float = Field(1.0, ge=0)
    tensor_parallel: int = Field(1, ge=1)
    kv_cache_bytes: int = Field(256 << 20, ge=1 << 20)
    max_num_seqs: int = Field(256, ge=1)
    """Most answers generated at once by one worker."""
    enforce_eager: bool = True
    prefix_caching: bool = False
    engine: dict[str, Any] = {}
    """More vLLM EngineArgs, passed through."""


class DeadlineSettings(Settings):
    """Longest waits, in seconds. Passing one stops the run with the phase, the actor and the rank."""

    start: float = Field(300, gt=0)
    """Process start: imports, model load, ZeRO partitioning, vLLM start."""
    call: float = Field(900, gt=0)
    """One forward, update, sync or save of a group."""
    generate: float = Field(900, gt=0)
    """No answer finished for this long while some are due."""


class ClusterSettings(Settings):
    """Where a run runs. The same stage file goes from a laptop to a cluster by changing this section only."""

    address: str | None = None
    """Ray cluster to join (`auto`, or `ray://`, `host:port`); null starts one on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type of the models; master weights and optimizer states are always float32."""
    placement: Literal["auto", "colocate", "separate"] = "auto"
    """`colocate` packs a role's ranks together with the others', `separate` spreads roles over nodes."""
    actor: HostSettings = HostSettings()
    critic: HostSettings = HostSettings()
    reference: HostSettings = HostSettings()
    reward: HostSettings = HostSettings()
    rollout: RolloutSettings = RolloutSettings()
    train_tokens: int = Field(8192, ge=16)
    """Token budget of a training micro-batch (memory only: it never changes a loss)."""
    forward_tokens: int = Field(16384, ge=16)
    """Token budget of a forward-only micro-batch."""
    persistence_threshold: int = Field(0, ge=0)
    """ZeRO-3 keeps tensors up to this many elements whole on every rank; 0 partitions everything."""
    deepspeed: dict[str, Any] = {}
    """More DeepSpeed JSON, merged over ours (not the keys that decide batch size or accumulation)."""
    bucket_bytes: int = Field(256 << 20, ge=1 << 16)
    """Size of a weight-sync bucket."""
    deadlines: DeadlineSettings = DeadlineSettings()

    def host(self, role: Role) -> HostSettings:
        """The ranks of one role."""
        return getattr(self, role)  # type: ignore[no-any-return]
