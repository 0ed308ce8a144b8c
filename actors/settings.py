"""Settings of what runs inside actors: models, optimizers, sampling, and `cluster:` (hardware)."""

from typing import Any, Literal

from pydantic import Field, model_validator

from quadriga.actors.launcher_settings import KubernetesSettings, SlurmSettings, SshSettings
from quadriga.data.settings import Settings

Role = Literal["actor", "critic", "reference", "reward"]
PlacedRole = Literal["actor", "critic", "reference", "reward", "rollout"]


class ModelSettings(Settings):
    """A model to start from: a Hugging Face folder, or a shape with fresh weights."""

    path: str | None = None
    """Folder with config.json and safetensors weights."""
    shape: dict[str, Any] | None = None
    """Hugging Face config fields (`model_type`, `hidden_size`, ...) of a model with fresh weights."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSettings":
        if (self.path is None) == (self.shape is None):
            raise ValueError("give exactly one of `path` and `shape`")
        return self


class OptimizerSettings(Settings):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(1e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """The schedule ends at this share of `lr`. Has no effect with `constant`."""
    max_grad_norm: float = Field(1.0, gt=0)


class SamplingSettings(Settings):
    """How answers are drawn."""

    max_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, ge=0)
    """0 is greedy (evaluation only). Trainer log-probs are divided by the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0: off."""


class ModelWorkerSettings(Settings):
    """One model's ranks."""

    ranks: int = Field(1, ge=1)
    """ZeRO data-parallel processes of this model."""
    nodes: int | None = Field(None, ge=1)
    """Spread the ranks evenly over so many nodes; null: wherever there is room."""
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
    nodes: int | None = Field(None, ge=1)
    """Spread the workers evenly over so many nodes; null: wherever there is room."""
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
    """Longest waits, in seconds. An error that names the phase, the actor and the rank follows; see `recovery`."""

    start: float = Field(300, gt=0)
    """Process start: imports, model load, ZeRO partitioning, vLLM start."""
    call: float = Field(900, gt=0)
    """One forward, update, sync or save of a group."""
    generate: float = Field(900, gt=0)
    """No answer finished for this long while some are due."""
    heartbeat: float = Field(60, gt=0)
    """No sign of life from a process that owes an answer: it is stopped, or cut off, and is replaced."""
    progress: float = Field(3600, gt=0)
    """No answer and no optimizer step finished anywhere: every process writes its stacks to its log, the run stops."""


class RecoverySettings(Settings):
    """How many lost processes a run puts up with before it stops, with their history."""

    max_losses: int = Field(20, ge=0)
    """In one attempt of a stage; 0 stops at the first."""
    max_at_one_place: int = Field(3, ge=0)
    """Of the same process, in the same step and phase: what fails there again and again will not mend itself."""


class ClusterSettings(Settings):
    """Where a run runs. The same stage file goes from a laptop to a cluster by changing this section only."""

    address: str | None = None
    """Ray cluster to join (`auto`, or `ray://`, `host:port`); null starts one on this machine."""
    ssh: SshSettings | None = None
    """Hosts on which `quadriga launch` brings up a cluster for the run."""
    slurm: SlurmSettings | None = None
    """The job as which `quadriga launch` submits the run to Slurm."""
    kubernetes: KubernetesSettings | None = None
    """The RayJob as which `quadriga launch` submits the run to Kubernetes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type of the models; master weights and optimizer states are always float32."""
    placement: Literal["auto", "colocate", "separate"] | list[list[PlacedRole]] = "auto"
    """On GPUs: `separate` gives every rank its own, `colocate` lets rank i of every role share one; a list of lists
    ([[actor, critic, reference, reward], [rollout]]) lets those of a list share, on nodes where `nodes` are given."""
    actor: ModelWorkerSettings = ModelWorkerSettings()
    critic: ModelWorkerSettings = ModelWorkerSettings()
    reference: ModelWorkerSettings = ModelWorkerSettings()
    reward: ModelWorkerSettings = ModelWorkerSettings()
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
    recovery: RecoverySettings = RecoverySettings()

    @model_validator(mode="after")
    def _one_way_up(self) -> "ClusterSettings":
        ways = [name for name in ("address", "ssh", "slurm", "kubernetes") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"give one of `{ways[0]}` and `{ways[1]}`: a run gets its cluster in one way")
        return self

    def model_worker(self, role: Role) -> ModelWorkerSettings:
        """The ranks of one role."""
        return getattr(self, role)  # type: ignore[no-any-return]
