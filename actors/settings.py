"""Settings of what runs inside actors: models, optimizers, sampling, and `cluster:` (hardware)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quadriga.actors.launcher_settings import KubernetesSettings, SlurmSettings, SshSettings
from quadriga.actors.transfer_settings import TRANSFERS, ObjectStore, TransferSettings
from quadriga.data.model_path import ModelPath
from quadriga.data.registry import Choice
from quadriga.data.settings import Settings

Role = Literal["actor", "critic", "reference", "reward"]
PlacedRole = Literal["actor", "critic", "reference", "reward", "rollout"]
Dtype = Literal["float32", "bfloat16"]
Auto = Literal["auto"]
"""Take what suits the device: `DeviceDefaults`."""


@dataclass(frozen=True)
class DeviceDefaults:
    """The settings of `cluster` that depend on the device where they are `auto`, with `auto` replaced."""

    dtype: Dtype
    kv_cache_bytes: int
    enforce_eager: bool
    persistence_threshold: int


class ModelSettings(Settings):
    """A model to start from: a Hugging Face folder, or a shape with fresh weights."""

    path: ModelPath | None = None
    """Folder with config.json and safetensors weights, as `save_pretrained` writes it, or the name of a model that the
    local Hugging Face cache holds, such as `Qwen/Qwen3-0.6B`; nothing is downloaded."""
    shape: dict[str, Any] | None = None
    """Hugging Face config fields (`model_type`, `hidden_size`, ...) of a model that starts with fresh weights."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSettings":
        if (self.path is None) == (self.shape is None):
            raise ValueError("give exactly one of `path` and `shape`")
        return self


class OptimizerSettings(Settings):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(1e-5, gt=0)
    """Highest learning rate, reached after `warmup_steps`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Term that AdamW adds to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; biases and norm scales are not decayed."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after warm-up, over `total_steps`."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0; 0 starts at `lr`."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Share of `lr` at which the schedule ends. Has no effect with `constant`."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Global gradient norm above which gradients are scaled down to it."""


class SamplingSettings(Settings):
    """How answers are drawn."""

    max_tokens: int = Field(64, ge=1)
    """Longest answer, in tokens, the end token included."""
    temperature: float = Field(1.0, ge=0)
    """Divisor of the logits; the trainer's log-probs use it too. 0 takes the likeliest token (evaluation only). vLLM
    takes 0.01 for what lies between, so stages that train on their answers refuse it."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Probability mass of the likeliest tokens that are sampled from; 1 keeps all tokens. Stages that train on
    their answers refuse less: the trainer computes log-probs over the whole vocabulary."""
    top_k: int = Field(0, ge=0)
    """Number of likeliest tokens that are sampled from; 0 keeps all tokens. Stages that train on their answers
    refuse others, as for `top_p`."""


class ModelWorkerSettings(Settings):
    """The processes of one model."""

    ranks: int = Field(1, ge=1)
    """Number of data-parallel processes (ZeRO ranks) of this model."""
    nodes: int | None = Field(None, ge=1)
    """Number of nodes that the ranks are spread over evenly; null places them wherever there is room."""
    threads: int | None = Field(None, ge=1)
    """CPU threads per rank; null divides the cores by the number of ranks that compute at the same time."""
    gpus: float = Field(1.0, ge=0)
    """GPUs per rank; a fraction shares one. Has no effect on `device: cpu`."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 parameters too, 0 nothing."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: optimizer states, or parameters too. Has no effect on `device: cpu`."""


class RolloutSettings(Settings):
    """The vLLM workers."""

    workers: int = Field(1, ge=1)
    """Number of vLLM engines."""
    nodes: int | None = Field(None, ge=1)
    """Number of nodes that the workers are spread over evenly; null places them wherever there is room."""
    threads: int = Field(1, ge=1)
    """CPU threads per worker. 1 keeps answers bit-identical however requests are batched."""
    gpus: float = Field(1.0, ge=0)
    """GPUs per tensor-parallel rank of a worker; a fraction shares one. Has no effect on `device: cpu`."""
    tensor_parallel: int = Field(1, ge=1)
    """Number of GPUs that one engine's weights are cut over."""
    kv_cache_bytes: Annotated[int, Field(ge=1 << 20)] | Auto = "auto"
    """Memory for the keys and values of running requests, in bytes on each GPU of a worker; `auto` is 256 MiB on
    CPU and 4 GiB on a GPU."""
    max_num_seqs: int = Field(256, ge=1)
    """Largest number of answers that one worker generates at the same time."""
    enforce_eager: bool | Auto = "auto"
    """Whether vLLM runs without CUDA graphs and compilation, which start slowly and generate faster; `auto` does so on
    CPU."""
    prefix_caching: bool = False
    """Whether answers to the same prompt share its keys and values. The cache is dropped at every sync."""
    engine: dict[str, Any] = {}
    """Further vLLM EngineArgs, passed through as they are."""


class DeadlineSettings(Settings):
    """Longest waits, in seconds; an error that names the phase and the process follows. See `recovery`."""

    start: float = Field(300, gt=0)
    """Longest start of a process: imports, model load, ZeRO partitioning, vLLM start."""
    call: float = Field(900, gt=0)
    """Longest forward, update, sync or save of a group."""
    generate: float = Field(900, gt=0)
    """Longest wait during which no answer finishes while some are due."""
    heartbeat: float = Field(60, gt=0)
    """Longest wait for a sign of life from a process that owes an answer; it counts as stopped or cut off after that
    and is replaced."""
    progress: float = Field(3600, gt=0)
    """Longest wait during which no answer and no optimizer step finishes anywhere; after that every process writes its
    stacks to its log and the run stops."""


class RecoverySettings(Settings):
    """How many lost processes a run survives before it stops with their history."""

    max_losses: int = Field(20, ge=0)
    """Number of losses that one attempt of a stage survives; 0 stops at the first."""
    max_at_one_place: int = Field(3, ge=0)
    """Number of losses of one process in one step and phase that are survived: what fails there every time will fail
    again."""


class ClusterSettings(Settings):
    """Where a run runs. The same stage file goes from a laptop to a cluster by changing this section only."""

    address: str | None = None
    """Ray cluster to join (`auto`, `ray://host:port` or `host:port`); null starts one on this machine."""
    ssh: SshSettings | None = None
    """Hosts on which `quadriga launch` brings up a cluster for the run; null uses none."""
    slurm: SlurmSettings | None = None
    """The Slurm job as which `quadriga launch` submits the run; null submits none."""
    kubernetes: KubernetesSettings | None = None
    """The RayJob as which `quadriga launch` submits the run to Kubernetes; null submits none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute; `auto` takes GPUs where the cluster has any."""
    dtype: Dtype | Auto = "auto"
    """Computation type of the models; master weights and optimizer states are always float32. `auto` is float32 on
    CPU and bfloat16 on GPUs."""
    placement: Literal["auto", "colocate", "separate"] | list[list[PlacedRole]] = "auto"
    """How roles share GPUs: `separate` gives every rank its own, `colocate` lets rank i of every role share one, `auto`
    separates where there are enough. Lists of roles ([[actor, critic, reference, reward], [rollout]]) let those of one
    list share, on nodes of their own where `nodes` is given."""
    actor: ModelWorkerSettings = ModelWorkerSettings()
    """Processes of the policy that is trained."""
    critic: ModelWorkerSettings = ModelWorkerSettings()
    """Processes of the critic."""
    reference: ModelWorkerSettings = ModelWorkerSettings()
    """Processes of the frozen reference policy."""
    reward: ModelWorkerSettings = ModelWorkerSettings()
    """Processes of the reward model."""
    rollout: RolloutSettings = RolloutSettings()
    """The vLLM workers that generate."""
    train_tokens: int = Field(8192, ge=16)
    """Token budget of a training micro-batch. It decides memory only and never changes a loss."""
    forward_tokens: int = Field(16384, ge=16)
    """Token budget of a micro-batch without gradients."""
    persistence_threshold: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Size in elements up to which ZeRO-3 keeps a tensor whole on every rank; 0 partitions everything. `auto` is 0 on
    CPU and 100,000 on GPUs, where gathering a small tensor takes longer than using it."""
    deepspeed: dict[str, Any] = {}
    """Further DeepSpeed JSON, merged over ours; keys that decide batch size, accumulation or clipping are refused."""
    bucket_bytes: int = Field(256 << 20, ge=1 << 16)
    """Size of a weight-sync bucket, in bytes."""
    weight_transfer: Annotated[TransferSettings, Choice(TRANSFERS)] = ObjectStore()
    """How weights go from the trainer into the engines, chosen by `type`."""
    deadlines: DeadlineSettings = DeadlineSettings()
    """Longest waits, in seconds."""
    recovery: RecoverySettings = RecoverySettings()
    """How many lost processes a run survives."""

    @model_validator(mode="after")
    def _one_way_up(self) -> "ClusterSettings":
        ways = [name for name in ("address", "ssh", "slurm", "kubernetes") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"give one of `{ways[0]}` and `{ways[1]}`: a run gets its cluster in one way")
        return self

    def model_worker(self, role: Role) -> ModelWorkerSettings:
        """The ranks of one role."""
        return getattr(self, role)

    def on(self, device: str) -> "DeviceDefaults":
        """Return the settings that may be `auto`, as they are on a device (`cpu` or `cuda`)."""
        cuda, rollout = device == "cuda", self.rollout
        return DeviceDefaults(
            dtype=("bfloat16" if cuda else "float32") if self.dtype == "auto" else self.dtype,
            kv_cache_bytes=(4 << 30 if cuda else 256 << 20)
            if rollout.kv_cache_bytes == "auto"
            else rollout.kv_cache_bytes,
            enforce_eager=not cuda if rollout.enforce_eager == "auto" else rollout.enforce_eager,
            persistence_threshold=(100_000 if cuda else 0)
            if self.persistence_threshold == "auto"
            else self.persistence_threshold,
        )
