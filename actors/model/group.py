"""ActorGroup: all ranks of one role as one object. It plans a batch over them, sends it and puts results in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from quadriga.actors.model.batch import Element, LossPart, pack_layout, shared_passes
from quadriga.actors.model.worker import ModelWorker, ModelWorkerSpec, Pass, UpdateResult, WorkerResult
from quadriga.actors.runtime.process import remote_process, runtime_env
from quadriga.actors.runtime.remote_calls import wait_all
from quadriga.data.errors import Fault, Lost
from quadriga.data.tokens.packing import BatchPlan, PackedBatch, plan, unpack
from quadriga.kernels.statistics import reduce_statistics

Array = NDArray[Any]
T = TypeVar("T")
V = TypeVar("V")


@dataclass
class Update:
    """One optimizer step of a group.

    stats: statistics over the global batch (see kernels/statistics.py). grad_norm: before clipping. seconds: of the
    slowest rank. micro_batches: per rank.
    """

    stats: dict[str, float]
    grad_norm: float
    seconds: float
    micro_batches: int


class Pending(Generic[T]):
    """A group call in flight; `result()` waits for it, up to the group's deadline."""

    def __init__(self, group: "ActorGroup", refs: dict[str, Any], phase: str, finish: Callable[[dict[str, Any]], T]):
        self._group, self._refs, self._phase, self._finish = group, refs, phase, finish

    def result(self) -> T:
        """Return the gathered result. Raises Lost naming phase, role and rank."""
        group = self._group
        results = wait_all(self._refs, self._phase, group.limits.call, group.handles, group.limits.heartbeat)
        return self._finish(results)


class ActorGroup:
    """N ranks of one role. Its methods start a call on every rank and return a `Pending` at once."""

    def __init__(
        self,
        specs: list[ModelWorkerSpec],
        logs: str,
        options: Sequence[dict[str, Any]],
        worker_class: type[ModelWorker] = ModelWorker,
    ):
        """Create the processes; `start_groups` makes them load.

        specs: one per rank. logs: folder for `<role>-<rank>.log`. options: Ray actor options per rank. worker_class:
        class that runs in the processes.
        """
        self.specs, self.role = specs, specs[0].role
        self.world = len(specs)
        self.limits = specs[0].cluster.deadlines
        self.memory = 0
        self.description: dict[str, Any] = {}
        self.logs = [f"{logs}/{self.role}-{spec.rank}.log" for spec in specs]
        self.ranks = []
        for spec, log, actor_options in zip(specs, self.logs, options, strict=True):
            name = f"{self.role}-{spec.rank}"
            actor = remote_process(worker_class, log, name).options(
                runtime_env=runtime_env("model", spec.device, spec.threads),
                **actor_options,
            )
            self.ranks.append(actor.remote(spec))

    @property
    def handles(self) -> dict[str, Any]:
        """Ray handles by process name: `actor 0` and so on."""
        return {f"{self.role} {number}": rank for number, rank in enumerate(self.ranks)}

    def forward_logprobs(
        self, sequences: Sequence[list[int]], temperature: float, phase: str
    ) -> Pending[list[tuple[Array, Array]]]:
        """Compute (log-probs, entropies) per sequence, each [length] float32 in nats, aligned with its tokens."""

        def per_sequence(value: tuple[Array, Array], batch: PackedBatch) -> list[tuple[Array, Array]]:
            return list(zip(*(unpack(part, batch.cu_seqlens) for part in value), strict=True))

        return self._forward(ModelWorker.forward_logprobs, sequences, phase, per_sequence, temperature)

    def forward_values(self, sequences: Sequence[list[int]], phase: str) -> Pending[list[Array]]:
        """Compute the values [length] per sequence, float32, aligned with the token chosen in that state."""
        return self._forward(
            ModelWorker.forward_values, sequences, phase, lambda value, batch: unpack(value, batch.cu_seqlens)
        )

    def forward_scores(self, sequences: Sequence[list[int]], phase: str) -> Pending[list[float]]:
        """Compute one score per sequence, read at its last token and not shifted."""
        return self._forward(
            ModelWorker.forward_scores, sequences, phase, lambda value, batch: [float(x) for x in value]
        )

    def update(self, parts: Sequence[LossPart], lr: float, temperature: float = 1.0) -> Pending[Update]:
        """Do one optimizer step on all parts: the gradients of all their micro-batches add up.

        lr: learning rate. temperature: divides a causal LM's logits.
        Raises KeyError if an element lacks a field of a loss, and Fault if ranks would run different numbers of
        micro-batches or a trainable tensor did not move in the first step.
        """
        passes: list[list[Pass]] = [[] for _ in range(self.world)]
        for elements, terms in shared_passes(parts):
            layout = self._plan([e.length for e in elements], self.specs[0].cluster.train_tokens, "update")
            fields = list(dict.fromkeys(name for term in terms for name in term.loss.fields))
            for rank, batches in enumerate(pack_layout(layout, elements, fields)):
                passes[rank].append((batches, terms))
        return self._call(ModelWorker.update, [(own, lr, temperature) for own in passes], "update", _merge)

    def send_weights(self, version: int, workers: dict[str, Any]) -> Pending[tuple[int, dict[str, Lost]]]:
        """Send the whole model to rollout workers (name -> handle): bytes sent to each, and losses by name."""
        arguments = [(version, workers)] * self.world
        first = f"{self.role} 0"
        return self._call(ModelWorker.send_weights, arguments, "sync", lambda results: results[first].value)

    def save(self, folder: str) -> Pending[None]:
        """Write model and optimizer: every rank its part."""
        return self._call(ModelWorker.save, [(folder,)] * self.world, "checkpoint", _nothing)

    def load(self, folder: str, steps: int, universal: str | None = None) -> Pending[None]:
        """Read model and optimizer back: every rank its part.

        steps: optimizer steps done before. universal: folder of the same in DeepSpeed's format for another number of
        ranks.
        """
        return self._call(ModelWorker.load, [(folder, steps, universal)] * self.world, "resume", _nothing)

    def export(self, folder: str, kind: str, extra: dict[str, Any] | None = None) -> Pending[None]:
        """Write the model in Hugging Face layout; kind: policy, reward or critic."""
        return self._call(ModelWorker.export, [(folder, kind, extra or {})] * self.world, "export", _nothing)

    def close(self) -> None:
        """End the processes."""
        import ray

        for rank in self.ranks:
            ray.kill(rank)

    def _plan(self, lengths: list[int], budget: int, phase: str) -> BatchPlan:
        """Plan micro-batches of at most `budget` tokens per rank.

        Raises Fault if ranks would run different numbers of micro-batches: their collectives would never meet.
        """
        layout = plan(lengths, self.world, budget)
        if len(counts := {len(rank) for rank in layout.ranks}) > 1:
            raise Fault(f"the ranks were given different numbers of micro-batches: {sorted(counts)}", phase=phase)
        return layout

    def _forward(
        self,
        method: Callable[..., WorkerResult[list[V]]],
        sequences: Sequence[list[int]],
        phase: str,
        per_sequence: Callable[[V, PackedBatch], list[T]],
        *more: Any,
    ) -> Pending[list[T]]:
        """Run a forward method on all sequences; `per_sequence` cuts its value for one micro-batch."""
        layout = self._plan([len(s) for s in sequences], self.specs[0].cluster.forward_tokens, phase)
        packed = pack_layout(layout, [Element([sequence]) for sequence in sequences], ())

        def in_order(results: dict[str, WorkerResult[list[V]]]) -> list[T]:
            answers: dict[int, T] = {}
            for rank, result in enumerate(results.values()):
                for micro, value, batch in zip(layout.ranks[rank], result.value, packed[rank], strict=True):
                    # A filler's micro-batch has no index, and its answer is left out.
                    answers |= zip(micro, per_sequence(value, batch), strict=False)
            return [answers[index] for index in range(len(sequences))]

        return self._call(method, [(batches, *more) for batches in packed], phase, in_order)

    def _call(
        self,
        method: Callable[..., WorkerResult[V]],
        arguments: list[tuple[Any, ...]],
        phase: str,
        finish: Callable[[dict[str, WorkerResult[V]]], T],
    ) -> Pending[T]:
        """Call a worker method on every rank, with that rank's arguments."""
        refs = {
            f"{self.role} {i}": getattr(rank, method.__name__).remote(*given)
            for i, (rank, given) in enumerate(zip(self.ranks, arguments, strict=True))
        }

        def note_memory_and_finish(results: dict[str, WorkerResult[V]]) -> T:
            self.memory = max(self.memory, *(result.memory for result in results.values()))
            return finish(results)

        return Pending(self, refs, phase, note_memory_and_finish)


def start_groups(groups: Sequence[ActorGroup]) -> None:
    """Have all groups load their models at the same time; set each group's `description` and `memory`."""
    if not groups:
        return
    addresses = wait_all(
        {f"{g.role} 0": g.ranks[0].address.remote() for g in groups}, "start", max(g.limits.start for g in groups)
    )
    refs = {
        f"{g.role} {i}": rank.start.remote(addresses[f"{g.role} 0"]) for g in groups for i, rank in enumerate(g.ranks)
    }
    results = wait_all(refs, "start", max(g.limits.start for g in groups))
    for group in groups:
        first = results[f"{group.role} 0"]
        group.description, group.memory = first.value, first.memory


def _merge(results: dict[str, WorkerResult[UpdateResult]]) -> Update:
    """Reduce the results of all ranks. Raises Fault if a tensor did not move on any rank that checked."""
    updates = [result.value for result in results.values()]
    unchanged = [set(update.unchanged) for update in updates if update.unchanged is not None]
    if unchanged and (stuck := sorted(set.intersection(*unchanged))):
        role = next(iter(results)).split()[0]
        raise Fault(
            f"after the first step with a learning rate above 0, {len(stuck)} trainable tensors of the {role} "
            f"had not moved: {', '.join(stuck[:4])}{' ...' if len(stuck) > 4 else ''}",
            phase="update",
            process=role,
        )
    stats = reduce_statistics(update.stats for update in updates)
    seconds = max(result.seconds for result in results.values())
    return Update(stats, updates[0].grad_norm, seconds, updates[0].micro_batches)


def _nothing(results: dict[str, WorkerResult[None]]) -> None:
    return None
