"""ModelWorker: the process that computes one rank of one model. Its only caller is the `ActorGroup` that owns it."""

import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from quadriga.actors.model.batch import Term
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.runtime.device import memory_bytes, start_torch
from quadriga.actors.runtime.network import use_interface_of
from quadriga.actors.settings import ClusterSettings, OptimizerSettings, Role
from quadriga.actors.weights.base import Sender
from quadriga.data.errors import Fault, Lost
from quadriga.data.registry import import_object
from quadriga.data.tokens.packing import PackedBatch
from quadriga.kernels.statistics import reduce_statistics

T = TypeVar("T")
Array = NDArray[Any]


@dataclass(frozen=True)
class ModelWorkerSpec:
    """Everything a rank needs to start."""

    role: Role
    rank: int
    world: int
    model: ModelSpec
    cluster: ClusterSettings
    device: str
    threads: int
    optimizer: OptimizerSettings | None = None


@dataclass
class WorkerResult(Generic[T]):
    """A call's value, the seconds it took inside the worker, and the worker's peak memory in bytes."""

    value: T
    seconds: float
    memory: int


@dataclass
class UpdateResult:
    """One optimizer step of one rank.

    stats: statistics over its micro-batches. grad_norm: of the whole model, before clipping. unchanged: trainable
    tensors that did not move; None if that was not checked.
    """

    stats: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    unchanged: list[str] | None = None
    micro_batches: int = 0


Pass = tuple[list[PackedBatch], tuple[Term, ...]]
"""Micro-batches of one rank, and the terms that are computed on each of them."""


class ModelWorker:
    """One rank of one model under ZeRO. One model per process: Hugging Face's ZeRO-3 hook is process-global."""

    def __init__(self, spec: ModelWorkerSpec):
        self.spec = spec
        self.steps = 0
        self.moved = False  # whether a step has been checked to move every tensor
        self.sender: Sender[Any] | None = None

    def address(self) -> tuple[str, int]:
        """Return this node's IP address and a free port, for the group's rendezvous."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, master: tuple[str, int]) -> WorkerResult[dict[str, Any]]:
        """Join the group, load and partition the model; return facts of the process and the model.

        master: address and port of the rendezvous. Raises UserError for a model that cannot be trained here.
        """
        began = time.monotonic()
        spec = self.spec
        self.working_thread = threading.get_ident()
        os.environ.update(
            RANK=str(spec.rank),
            WORLD_SIZE=str(spec.world),
            LOCAL_RANK="0",
            MASTER_ADDR=master[0],
            MASTER_PORT=str(master[1]),
        )
        if spec.world > 1:
            import ray

            use_interface_of(ray.util.get_node_ip_address())
        self.device = start_torch(spec.device, spec.threads)
        import torch

        from quadriga.actors.model.deepspeed import ZeroEngine, deepspeed_config
        from quadriga.actors.model.equivalence import check_packed_forward
        from quadriga.actors.model.heads import load_model

        before = memory_bytes(spec.device)
        self.torch = torch
        torch.manual_seed(spec.model.seed)
        dtype = getattr(torch, spec.cluster.on(spec.device).dtype)
        config = deepspeed_config(spec.cluster, spec.cluster.model_worker(spec.role), spec.optimizer, spec.device)
        self.engine = ZeroEngine(lambda: load_model(spec.model, dtype), config, spec.optimizer, spec.device)
        self.model = self.engine.module
        check_packed_forward(self.engine.engine, self.model, spec.model.head, spec.model.path, self.device)
        partitioned, tensors = self.engine.partitioned()
        description = {
            "tensors": tensors,
            "partitioned_tensors": partitioned,
            "pid": os.getpid(),
            "memory_before_model": before,
        }
        return self._result(description, began)

    def forward_logprobs(
        self, batches: list[PackedBatch], temperature: float
    ) -> WorkerResult[list[tuple[Array, Array]]]:
        """Return (log-probs [T], entropies [T]), float32 and in nats, per batch."""
        from quadriga.actors.model.heads import token_logprobs

        began = time.monotonic()
        result = list[tuple[Array, Array]]()
        with self.torch.no_grad():
            for batch in batches:
                pair = token_logprobs(self.engine.engine, self.model, self._tensors(batch), temperature)
                result.append(tuple(x.cpu().numpy() for x in pair))
        return self._result(result, began)

    def forward_values(self, batches: list[PackedBatch]) -> WorkerResult[list[Array]]:
        """Return values [T], float32, per batch: each of the state in which a token was chosen, 0 at a first token."""
        began = time.monotonic()
        with self.torch.no_grad():
            result = [self._values(self._tensors(batch)).cpu().numpy() for batch in batches]
        return self._result(result, began)

    def forward_scores(self, batches: list[PackedBatch]) -> WorkerResult[list[Array]]:
        """Return scores [N], float32, per batch: the head's output at each sequence's last token (not shifted)."""
        began = time.monotonic()
        with self.torch.no_grad():
            result = [self._scores(self._tensors(batch)).cpu().numpy() for batch in batches]
        return self._result(result, began)

    def update(self, passes: list[Pass], lr: float, temperature: float) -> WorkerResult[UpdateResult]:
        """Do one optimizer step: forward and backward over the micro-batches of all passes, then clip and apply.

        The normaliser of a term counts units over all ranks and micro-batches of this step. ZeRO averages over ranks,
        so each loss is scaled by the number of ranks. lr: learning rate. temperature: divides a causal LM's logits.
        Raises Fault, before any weight changes, when the gradient norm is not finite.
        """
        began = time.monotonic()
        check = not self.moved and lr > 0
        before = self.engine.fingerprints() if check else {}
        stats = [self.forward_backward(batch, terms, temperature) for batches, terms in passes for batch in batches]
        result = UpdateResult(reduce_statistics(stats), micro_batches=len(stats))
        result.grad_norm = self.optimizer_step(lr, result.stats)
        if check and result.grad_norm > 0:  # a step without a gradient (all advantages 0) moves nothing, rightly
            result.unchanged, self.moved = self._unchanged_parameters(before, lr), True
        self.steps += 1 if lr > 0 else 0
        return self._result(result, began)

    def forward_backward(self, batch: PackedBatch, terms: Sequence[Term], temperature: float) -> dict[str, float]:
        """Accumulate one micro-batch's gradients of all terms; return their statistics."""
        tensors = self._tensors(batch)
        needs_entropy = any(term.loss.needs_entropy for term in terms)
        output = self._output(terms[0].loss.head, tensors, temperature, needs_entropy)
        scaled, statistics = [], dict[str, Any]()
        for term in terms:
            total, stats = term.loss(output, tensors)
            scaled.append(total * (term.coefficient * self.engine.world / term.normalizer))
            statistics |= {term.prefix + name: value for name, value in (stats | {"loss": total.detach()}).items()}
        self.engine.backward(sum(scaled[1:], start=scaled[0]))
        return {name: float(value) for name, value in statistics.items()}

    def optimizer_step(self, lr: float, stats: dict[str, float]) -> float:
        """Apply the accumulated gradients; return their global norm before clipping.

        stats: this step's statistics. Raises Fault where the norm is not finite, naming the statistics that are not
        finite either.
        """
        from quadriga.actors.model.deepspeed import NonFiniteGradient

        try:
            return self.engine.step(lr)
        except NonFiniteGradient:
            role = self.spec.role
            non_finite = [name for name, value in stats.items() if not math.isfinite(value)]
            where = f"{', '.join(non_finite)} too" if non_finite else "while the loss is finite"
            raise Fault(
                f"The gradient norm of the {role} is not finite in optimizer step {self.steps + 1} ({where}): no "
                "weight was changed. Look for a learning rate that is too high, a reward without bounds or, in "
                "bfloat16, an overflow; a run that is started again resumes from its last checkpoint.",
                phase="update",
                process=role,
            ) from None

    def send_weights(self, version: int, workers: dict[str, Any]) -> WorkerResult[tuple[int, dict[str, Lost]]]:
        """Send the whole model to rollout workers (name -> handle): every rank gathers, rank 0 sends.

        Returns the value of `Sender.send`.
        """
        from quadriga.actors.weights.source import gathered_buckets, saved_form

        began = time.monotonic()
        cluster = self.spec.cluster
        if self.sender is None:
            transfer = cluster.weight_transfer
            self.sender = import_object(transfer.sender)(transfer, self.spec.rank, cluster.deadlines)
        gathered = gathered_buckets(self.model, cluster.bucket_bytes, self.weights_to_send())
        buckets = (list(saved_form(self.model, dict(bucket)).items()) for bucket in gathered)
        return self._result(self.sender.send(version, workers, buckets), began)

    def weights_to_send(self) -> list[tuple[str, Any]]:
        """Return the names and parameters of a sync: always the whole model."""
        from quadriga.actors.weights.source import named_weights

        return named_weights(self.model)

    def save(self, folder: str) -> WorkerResult[None]:
        """Write this rank's part of model and optimizer to a folder."""
        began = time.monotonic()
        try:
            self.engine.save(folder)
            own = self._random_state() | {"optimizer_steps": self.engine.optimizer_steps()}
            self.torch.save(own, Path(folder) / f"rank-{self.spec.rank}.pt")
        except (OSError, RuntimeError) as error:  # torch wraps a full disk
            raise self._write_fault(folder, error) from error
        return self._result(None, began)

    def load(self, folder: str, steps: int, universal: str | None) -> WorkerResult[None]:
        """Read this rank's part of model and optimizer back.

        steps: optimizer steps done before. universal: folder of converted shards if another number of ranks wrote them,
        else None.
        """
        began = time.monotonic()
        if universal is None:
            self.engine.load(folder)
        else:
            # Every rank took the same number of steps, so rank 0's count also holds for ranks that did not exist.
            state = self.torch.load(Path(folder) / "rank-0.pt", weights_only=True)
            self.engine.load_universal(universal, state["optimizer_steps"])
        self._set_random_state(Path(folder))
        self.steps, self.moved = steps, steps > 0
        return self._result(None, began)

    def export(self, folder: str, kind: str, extra: dict[str, Any]) -> WorkerResult[None]:
        """Write the model in Hugging Face layout: every rank takes part in the gathers, rank 0 writes.

        kind, extra: as for `export_model`.
        """
        from quadriga.actors.model.export import export_model

        began = time.monotonic()
        bucket, first = self.spec.cluster.bucket_bytes, self.spec.rank == 0
        try:
            export_model(self.model, Path(folder), kind, extra, bucket, write=first)
        except (OSError, SafetensorError) as error:
            raise self._write_fault(folder, error) from error
        return self._result(None, began)

    def _write_fault(self, folder: str, error: Exception) -> Fault:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Fault(
            f"{self.spec.role} {self.spec.rank} cannot write {folder}: {reason}",
            phase="checkpoint",
            process=self.spec.role,
        )

    def _random_state(self) -> dict[str, Any]:
        """Return the state of the generators that dropout and the like draw from."""
        state = {"cpu": self.torch.get_rng_state()}
        return state | ({"cuda": self.torch.cuda.get_rng_state()} if self.spec.device == "cuda" else {})

    def _set_random_state(self, folder: Path) -> None:
        """Restore this rank's random state if the checkpoint has one: it may have been written by fewer ranks."""
        file = folder / f"rank-{self.spec.rank}.pt"
        if file.is_file():
            state = self.torch.load(file, weights_only=True)
            self.torch.set_rng_state(state["cpu"])
            if self.spec.device == "cuda" and "cuda" in state:
                self.torch.cuda.set_rng_state(state["cuda"])

    def _output(self, head: str, tensors: dict[str, Any], temperature: float, entropy_gradient: bool) -> dict[str, Any]:
        if head == "logprobs":
            from quadriga.actors.model.heads import token_logprobs

            logprobs, entropy = token_logprobs(self.engine.engine, self.model, tensors, temperature, entropy_gradient)
            return {"logprobs": logprobs, "entropy": entropy}
        return {"values": self._values(tensors)} if head == "values" else {"scores": self._scores(tensors)}

    def _values(self, tensors: dict[str, Any]) -> Any:
        from quadriga.actors.model.heads import token_scalars

        output = token_scalars(self.engine.engine, tensors)
        return self.torch.where(tensors["first"], 0.0, self.torch.roll(output, 1))

    def _scores(self, tensors: dict[str, Any]) -> Any:
        from quadriga.actors.model.heads import token_scalars

        return token_scalars(self.engine.engine, tensors)[tensors["cu_seqlens"][1:].long() - 1]

    def _tensors(self, batch: PackedBatch) -> dict[str, Any]:
        """Return the batch's arrays on the device, with `first` marking each sequence's first token."""
        torch = self.torch
        fields = {"token_ids": batch.token_ids, "position_ids": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
        fields |= batch.tokens | batch.sequences
        # Borders stay on the host: attention groups sequences by length there, and would wait for the device otherwise.
        tensors = {
            name: torch.as_tensor(np.array(value)).to("cpu" if name == "cu_seqlens" else self.device)
            for name, value in fields.items()
        }
        first = torch.zeros(len(batch.token_ids), dtype=torch.bool, device=self.device)
        first[tensors["cu_seqlens"][:-1].long()] = True
        return tensors | {"first": first}

    def _unchanged_parameters(self, before: dict[str, tuple[str, float]], lr: float) -> list[str]:
        """Return the tensors that this step left alone though AdamW's first step, about lr, exceeds fp32 rounding."""
        after = self.engine.fingerprints()
        return [name for name, (digest, size) in before.items() if after[name][0] == digest and lr > size * 1.2e-7]

    def _result(self, value: T, began: float) -> WorkerResult[T]:
        return WorkerResult(value, time.monotonic() - began, memory_bytes(self.spec.device))
