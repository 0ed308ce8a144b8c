"""Bytes of one process: what a model host or a rollout worker holds all the time, and what each phase adds.

The terms follow what DeepSpeed keeps of a model under ZeRO (Rajbhandari et al. 2020, section 3: weights, gradients and
optimizer states, each divided by the ranks from some stage on), and what our own kernels and weight transfer allocate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quadriga.actors.model.deepspeed import deepspeed_config
from quadriga.actors.model.heads import Head
from quadriga.actors.settings import ClusterSettings, OptimizerSettings
from quadriga.launch.plan.activations import forward_activations, training_activations
from quadriga.launch.plan.shapes import ModelShape
from quadriga.launch.plan.stages import Member, PlannedStage

Phase = Literal["start", "generate", "forward", "update", "sync"]
PHASES: tuple[Phase, ...] = ("start", "generate", "forward", "update", "sync")

MIB = 1 << 20
CHUNK = 256
"""Rows of logits that exist at once (`kernels.logprobs.linear_logprobs`)."""

TRAINED_RUNTIME, FROZEN_RUNTIME, ENGINE_RUNTIME = 115 * MIB, 55 * MIB, 120 * MIB
"""What gloo, oneDNN, the autograd engine and vLLM allocate in a CPU process beside the model. Measured with 2M
parameters."""

SMALL_BLOCK = 32 * MIB
"""glibc gives freed memory back to the system only in blocks from this size on (M_MMAP_THRESHOLD's upper limit)."""

HEAD_BLOCKS = 10
"""Chunks of logits that malloc keeps where they are small blocks, which do not fit into the holes that gathered weights
leave, nor these into theirs. With 110M parameters and a vocabulary of 32,000 there were 8 to 12 from run to run."""

CUDA_CONTEXT = 1 << 30
"""Of a process on a GPU: CUDA context, NCCL's channels, cuBLAS work space. An allowance."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process on its device, and beside it in the memory of its host.

    held: from start to end, by what it is. phases: what a phase adds while it lasts, by what it is. host: in the host's
    memory (empty on CPU, where the device is the host).
    """

    held: dict[str, int]
    phases: dict[Phase, dict[str, int]]
    host: dict[str, int]

    def during(self, phase: Phase) -> int:
        """Bytes on the device while a phase runs."""
        return sum(self.held.values()) + sum(self.phases.get(phase, {}).values())

    @property
    def peak(self) -> int:
        """Most bytes on the device in any phase."""
        return max(self.during(phase) for phase in PHASES)


def host_footprint(member: Member, stage: PlannedStage, device: str) -> Footprint:
    """One rank of a model."""
    rank = _Rank.of(member, stage, device)
    cuda = device == "cuda"
    held, away = {"weights": rank.weights}, dict[str, int]()
    if cuda and "offload_param" in rank.zero:
        held, away = {}, held
    phases: dict[Phase, dict[str, int]] = {"forward": rank.forward()}
    if member.trained:
        (away if rank.offloads else held).update(rank.states())
        held |= {"buffers": rank.bucket()}
        phases["update"] = rank.update() if cuda else rank.update_on_cpu()
    if not cuda:
        # Files are mapped while they are read, and a module's tensors are whole before they are partitioned.
        phases["start"] = {"loading": (4 * rank.parameters) + rank.width * member.shape.largest}
        if member.trained:
            held |= {"kept by malloc": rank.kept()}
            phases["forward"] = {}
    held["runtime"] = CUDA_CONTEXT if cuda else TRAINED_RUNTIME if member.trained else FROZEN_RUNTIME
    if stage.syncs and member.role == "actor":
        bucket = min(stage.cluster.bucket_bytes, rank.width * rank.parameters)
        # Gathered on the device; packed, and copied into the object store, in the host's memory.
        phases["sync"] = {"transfer": bucket if cuda else 2 * bucket}
        if cuda:
            away |= {"transfer": 2 * bucket}
    return Footprint(held, phases, away)


def engine_footprint(stage: PlannedStage, device: str) -> Footprint:
    """One rollout worker's share of one GPU (or all of it, on CPU)."""
    shape, settings = stage.engine, stage.cluster.rollout
    assert shape is not None
    width, parts = element_size(stage.cluster), settings.tensor_parallel
    parameters = shape.parameters()
    vocab, running = shape.vocab, settings.max_num_seqs
    packed = width * shape.layers * shape.layer if device == "cpu" else 0  # as its matrix products want them
    held = {
        "weights": width * parameters // parts + packed,
        "KV cache": settings.kv_cache_bytes,
        "runtime": CUDA_CONTEXT if device == "cuda" else ENGINE_RUNTIME,
    }
    batched = min(int(settings.engine.get("max_num_batched_tokens", 8192)), running * stage.longest)
    phases: dict[Phase, dict[str, int]] = {
        # Logits, log-probs and the sampler's noise, float32 each.
        "generate": {
            "activations": batched * forward_activations(shape, width) // parts,
            "head": 3 * 4 * running * vocab,
        }
    }
    host: dict[str, int] = {}
    if stage.syncs:
        received = width * (parameters + (shape.embedding if shape.tied else 0))  # a tied head is sent by itself too
        bucket = stage.cluster.bucket_bytes
        block = min(bucket, width * shape.largest)
        # On CPU: all that has come, in its own memory; two buckets in shared memory; layers being packed anew.
        whole = received + min(2 * bucket, received) + packed
        phases["sync"] = {"transfer": block if device == "cuda" else whole}
        host = {"transfer": received} if device == "cuda" else {}
    return Footprint(held, phases, host)


def element_size(cluster: ClusterSettings) -> int:
    """Bytes of a number in the models' computation type."""
    return 2 if cluster.dtype == "bfloat16" else 4


@dataclass(frozen=True)
class _Rank:
    """One rank's share of a model. width: bytes of a number in the computation type. zero: DeepSpeed's own section."""

    shape: ModelShape
    head: Head
    parameters: int
    ranks: int
    width: int
    zero: Mapping[str, Any]
    train_tokens: int
    forward_tokens: int
    on_cpu: bool

    @classmethod
    def of(cls, member: Member, stage: PlannedStage, device: str) -> "_Rank":
        cluster, host = stage.cluster, stage.cluster.model_worker(member.role)
        config = deepspeed_config(cluster, host, OptimizerSettings() if member.trained else None, device)
        return cls(
            member.shape,
            member.head,
            member.shape.parameters(member.head),
            host.ranks,
            element_size(cluster),
            config["zero_optimization"],
            max(stage.longest, cluster.train_tokens),
            max(stage.longest, cluster.forward_tokens),
            device == "cpu",
        )

    @property
    def stage(self) -> int:
        return int(self.zero["stage"])

    @property
    def offloads(self) -> bool:
        """Optimizer, master weights and gradients live in the host's memory."""
        return "offload_optimizer" in self.zero

    @property
    def weights(self) -> int:
        return self.width * -(-self.parameters // (self.ranks if self.stage == 3 else 1))

    @property
    def share(self) -> int:
        """Parameters whose optimizer state is here."""
        return -(-self.parameters // (self.ranks if self.stage else 1))

    def states(self) -> dict[str, int]:
        """Float32 master weights, gradients and AdamW's two moments (Rajbhandari et al. 2020, section 3.1).

        Stage 0 in float32 has no master copy: the weights are it. Stages 2 and 3 divide the gradients too.
        """
        return {
            "master": 4 * self.share if self.stage else 0,
            "gradients": 4 * (self.share if self.stage >= 2 else self.parameters),
            "optimizer": 8 * self.share,
        }

    def bucket(self) -> int:
        """The buffer in which stage 3 collects gradients for a reduction; on CPU only what is touched is there."""
        size = int(self.zero.get("reduce_bucket_size", 500_000_000))
        return self.width * (min(size, self.parameters) if self.on_cpu else size) if self.stage == 3 else 0

    def gathered(self, trains: bool) -> int:
        """Parameters that stage 3 holds whole at once.

        A forward pass alone lets each go after its module, and fetches some ahead. With a backward pass DeepSpeed keeps
        what comes again within `stage3_max_reuse_distance` elements: those of the last layers, there and back.
        """
        if self.stage != 3:
            return 0
        ahead = self.shape.largest + int(self.zero.get("stage3_prefetch_bucket_size", 50_000_000))
        kept = int(self.zero.get("stage3_max_reuse_distance", 1_000_000_000)) // 2 if trains else 0
        return self.width * min(self.parameters, ahead + kept)

    def forward(self) -> dict[str, int]:
        """A forward pass without gradient."""
        activations = self.forward_tokens * forward_activations(self.shape, self.width)
        head = max(self._head(), self._head_kept())
        return {"gathered": self.gathered(False), "activations": activations, "head": head}

    def update(self) -> dict[str, int]:
        """The larger of two moments: the turn from forward to backward, and the optimizer's step."""
        backward = {
            "gathered": self.gathered(True),
            "activations": self.train_tokens * training_activations(self.shape, self.width),
            "head": self._head_backward(),
            "reduction": self._reduction(),
        }
        step = {"step": 0 if self.offloads else self._step()}
        return max(backward, step, key=lambda part: sum(part.values()))

    def update_on_cpu(self) -> dict[str, int]:
        """As `update`, without what `kept` holds already."""
        small = self._activation_block < SMALL_BLOCK
        activations = 0 if small else self.train_tokens * training_activations(self.shape, self.width)
        backward = {"activations": activations, "head": self._head_backward()}
        return max(backward, {"step": self._step()}, key=lambda part: sum(part.values()))

    def kept(self) -> int:
        """Small blocks that a CPU process once had: the weights as loaded, or gathered weights and activations."""
        small = self._activation_block < SMALL_BLOCK
        activations = self.train_tokens * training_activations(self.shape, self.width) if small else 0
        loaded = self.weights if self.stage == 3 else 0
        gathered = max(0, self.gathered(True) - self.width * self.shape.embedding)
        return max(loaded, gathered + activations) + self._head_kept()

    def _head_kept(self) -> int:
        """On CPU, what small chunks of logits take."""
        block = 4 * CHUNK * self.shape.vocab
        return HEAD_BLOCKS * block if self.on_cpu and self.head == "logprobs" and block < SMALL_BLOCK else 0

    @property
    def _activation_block(self) -> int:
        return self.train_tokens * self.shape.intermediate * self.width

    def _step(self) -> int:
        """AdamW: a flat copy of the gradients and two intermediate results, each as large as a sub-group.

        Without ZeRO it goes from tensor to tensor.
        """
        if not self.stage:
            return 8 * self.shape.largest
        return 12 * min(self.share, int(self.zero.get("sub_group_size", 1_000_000_000)))

    def _reduction(self) -> int:
        """Stages 1 to 3 copy a bucket of gradients to send it; what comes back is widened to float32."""
        if not self.stage:
            return 0
        size = min(int(self.zero.get("reduce_bucket_size", 500_000_000)), self.parameters)
        return size * self.width + (4 * -(-size // self.ranks) if self.width == 2 else 0)

    def _head(self) -> int:
        """Float32 logits of a chunk, their probabilities, and the product's own output where that is narrower."""
        return CHUNK * self.shape.vocab * (8 + (2 if self.width == 2 else 0)) if self.head == "logprobs" else 0

    def _head_backward(self) -> int:
        """As forward, and the head's gradient: a float32 sum over chunks, one chunk's product, the sum as returned."""
        return 0 if self.head == "scalar" else self._head() + self.shape.embedding * (4 + self.width)
