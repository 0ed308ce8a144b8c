"""Bytes of one process: what a model host or a rollout worker holds throughout, and what each phase adds."""

from dataclasses import dataclass

from quadriga.actors.model.deepspeed import deepspeed_config
from quadriga.actors.settings import OptimizerSettings
from quadriga.launch.plan.workload import Member, PlannedStage

MIB = 1 << 20
CHUNK_ROWS = 256  # rows of logits that exist at once (`kernels.logprobs.linear_logprobs`)
CUDA_CONTEXT = 1024 * MIB  # an allowance for CUDA's context, NCCL's channels, cuBLAS's work space
# What gloo, oneDNN, the autograd engine and vLLM allocate in a CPU process beside a model: measured with 2M parameters.
TRAINED_RUNTIME, FROZEN_RUNTIME, ENGINE_RUNTIME = 115 * MIB, 55 * MIB, 120 * MIB
# glibc gives freed memory back to the system only in blocks from this size on (M_MMAP_THRESHOLD's upper limit).
SMALL_BLOCK = 32 * MIB


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process by what they are. held: on its device from start to end. phases: there while a phase lasts.
    host: in the memory of its host; empty on CPU, where the device is the host."""

    held: dict[str, int]
    phases: dict[str, dict[str, int]]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        """Return the most bytes on the device in any phase."""
        return sum(self.held.values()) + max(sum(parts.values()) for parts in self.phases.values())


def host_footprint(member: Member, stage: PlannedStage) -> Footprint:
    """Return the bytes of one rank of a model under ZeRO (Rajbhandari et al. 2020)."""
    shape, trained, width, cuda = member.shape, member.trained, stage.width, stage.device == "cuda"
    cluster, host, parameters = stage.cluster, getattr(stage.cluster, member.role), shape.parameters(member.head)
    zero = deepspeed_config(cluster, host, OptimizerSettings() if trained else None, stage.device)["zero_optimization"]
    level, offloads = int(zero["stage"]), "offload_optimizer" in zero
    reduced = int(zero.get("reduce_bucket_size", 500_000_000))  # these are DeepSpeed's own defaults
    prefetched = int(zero.get("stage3_prefetch_bucket_size", 50_000_000))
    reused = int(zero.get("stage3_max_reuse_distance", 1_000_000_000))
    sub_group = int(zero.get("sub_group_size", 1_000_000_000))

    weights = width * -(-parameters // (host.ranks if level == 3 else 1))
    # Float32 master weights, gradients and AdamW's two moments (section 3.1). Stage 0 in float32 has no master copy
    # beside its weights. Stages 2 and 3 divide the gradients too.
    updated = -(-parameters // (host.ranks if level else 1))
    gradients = 4 * (updated if level >= 2 else parameters)
    states = {"master": 4 * updated if level else 0, "gradients": gradients, "optimizer": 8 * updated}
    # AdamW takes a flat copy of the gradients and two intermediate results, each as large as a sub-group. Without ZeRO
    # it updates one tensor after the other.
    step = 12 * min(updated, sub_group) if level else 8 * shape.largest
    # Stages 1 to 3 copy a bucket of gradients to send it; what comes back is widened to float32.
    bucket = min(reduced, parameters)
    reduction = bucket * width + (4 * -(-bucket // host.ranks) if width == 2 else 0) if level else 0
    # In a forward pass stage 3 lets each module's weights go, and fetches some ahead. With a backward pass it keeps
    # what comes again within `stage3_max_reuse_distance` elements: those of the last layers, there and back.
    whole, ahead = parameters if level == 3 else 0, shape.largest + prefetched
    gathered, gathered_to_train = width * min(whole, ahead), width * min(whole, ahead + reused // 2)
    # Logits of a chunk in float32, their probabilities, and the product's own output where that is narrower. The head's
    # gradient: a float32 sum over chunks; where the weights are narrower, one chunk's product, and then the sum as
    # returned.
    logits = CHUNK_ROWS * shape.vocab if member.head == "logprobs" else 0
    head = logits * (10 if width == 2 else 8)
    head_backward = head + shape.embedding * (4 + (width if width == 2 else 0)) if logits else 0
    activations = max(stage.longest, cluster.forward_tokens) * shape.forward_activations(width)
    tokens = max(stage.longest, cluster.train_tokens)
    train_activations = tokens * shape.training_activations(width)

    held, away = {"weights": weights}, dict[str, int]()
    if cuda and "offload_param" in zero:
        held, away = away, held
    forward = {"gathered": gathered, "activations": activations, "head": head}
    phases: dict[str, dict[str, int]] = {"forward": forward}
    if trained:
        (away if offloads else held).update(states)
        # Stage 3 collects gradients in a buffer; on CPU only what is touched of it takes memory.
        held["buffers"] = width * (reduced if cuda else bucket) if level == 3 else 0
        backward = {"gathered": gathered_to_train, "activations": train_activations, "head": head_backward}
        backward["reduction"] = reduction
        if not cuda:
            # malloc keeps the small blocks that there once were: weights as loaded, or gathered ones and activations.
            small = tokens * shape.intermediate * width < SMALL_BLOCK
            once = max(0, gathered_to_train - width * shape.embedding) + (train_activations if small else 0)
            held["kept by malloc"] = max(weights if level == 3 else 0, once)
            phases["forward"] = {}
            backward = {"activations": 0 if small else train_activations, "head": head_backward}
        moments = backward, {"step": 0 if offloads and cuda else step}
        phases["update"] = max(moments, key=lambda parts: sum(parts.values()))
    if not cuda:
        # Files are mapped while they are read; a tied head is whole before it becomes the embedding.
        whole_head = shape.embedding if shape.tied and member.head == "logprobs" else 0
        phases["start"] = {"loading": 4 * parameters + width * whole_head}
    held["runtime"] = CUDA_CONTEXT if cuda else TRAINED_RUNTIME if trained else FROZEN_RUNTIME
    if stage.engine and member.role == "actor":
        # Gathered on the device; packed, and copied into the object store, in the host's memory.
        sent = min(cluster.bucket_bytes, width * parameters)
        phases["sync"] = {"transfer": sent if cuda else 2 * sent}
        away |= {"transfer": 2 * sent} if cuda else {}
    return Footprint(held, phases, away)


def engine_footprint(engine: Member, stage: PlannedStage) -> Footprint:
    """Return the bytes of one rollout worker's share of one GPU (or of all of it, on CPU)."""
    shape, settings, width, cuda = engine.shape, stage.cluster.rollout, stage.width, stage.device == "cuda"
    parameters = shape.parameters()
    packed = 0 if cuda else width * shape.inside  # again, repacked for CPU matrix products
    weights = width * parameters // settings.tensor_parallel + packed
    runtime = CUDA_CONTEXT if cuda else ENGINE_RUNTIME
    held = {"weights": weights, "KV cache": stage.cluster.on(stage.device).kv_cache_bytes, "runtime": runtime}
    batched = min(int(settings.engine.get("max_num_batched_tokens", 8192)), settings.max_num_seqs * stage.longest)
    activations = batched * shape.forward_activations(width) // settings.tensor_parallel
    head = 3 * 4 * settings.max_num_seqs * shape.vocab  # logits, log-probs and the sampler's noise, float32 each
    phases: dict[str, dict[str, int]] = {"generate": {"activations": activations, "head": head}}
    if not stage.hosted:
        return Footprint(held, phases, {})
    received = width * (parameters + (shape.embedding if shape.tied else 0))  # a tied head is also sent by itself
    bucket = stage.cluster.bucket_bytes
    # On CPU: everything received, in its own memory; two buckets in shared memory; the layers being repacked.
    whole = received + min(2 * bucket, received) + packed
    phases["sync"] = {"transfer": min(bucket, width * shape.largest) if cuda else whole}
    return Footprint(held, phases, {"transfer": received} if cuda else {})
