"""All ranks of one role as one object: plans a batch over them, sends it, puts the answers back in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadriga.actors.model.worker import ModelWorker, ModelWorkerSpec, WorkerResult
from quadriga.actors.runtime.process import remote_process, runtime_env
from quadriga.actors.runtime.remote_calls import wait_all
from quadriga.data.errors import Fault
from quadriga.data.tokens.packing import BatchPlan, PackedBatch, pack, plan, unpack

Array = NDArray[Any]


@dataclass
class Element:
    """What stays together in a micro-batch: one sequence, or all answers to a prompt.

    tokens: field -> one array a sequence, aligned with its tokens. per_sequence: field -> one number a sequence.
    """

    sequences: list[list[int]]
    tokens: dict[str, list[Any]] = field(default_factory=dict)
    per_sequence: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens in all."""
        return sum(len(sequence) for sequence in self.sequences)


@dataclass
class Update:
    """One optimizer step: statistics (sums over the global batch, except `_max` and `_min`), gradient norm, timing."""

    stats: dict[str, float]
    grad_norm: float
    seconds: float
    micro_batches: int


class Pending:
    """A group call under way; `result()` waits for it (with the group's deadline)."""

    def __init__(
        self, group: "ActorGroup", refs: dict[str, Any], phase: str, finish: Callable[[dict[str, WorkerResult]], Any]
    ):
        self._group, self._refs, self._phase, self._finish = group, refs, phase, finish
        self.seconds = 0.0

    def result(self) -> Any:
        """The gathered answer. Raises Lost naming phase, role and rank."""
        group = self._group
        results = wait_all(self._refs, self._phase, group.limits.call, group.handles, group.limits.heartbeat)
        self.seconds = max(result.seconds for result in results.values())
        return self._finish(results)


class ActorGroup:
    """N ranks of one role."""

    def __init__(
        self,
        specs: list[ModelWorkerSpec],
        logs: str,
        seats: Sequence[dict[str, Any]],
        worker_class: type[ModelWorker] = ModelWorker,
    ):
        """Create the processes; `start_groups` makes them load.

        logs: folder for `<role>-<rank>.log`. seats: Ray actor options of each rank. worker_class: what runs in them.
        """
        self.specs, self.role = specs, specs[0].role
        self.world = len(specs)
        self.limits = specs[0].cluster.deadlines
        self.memory = 0
        self.description: dict[str, Any] = {}
        self.logs = [f"{logs}/{self.role}-{spec.rank}.log" for spec in specs]
        self.ranks = []
        for spec, log, seat in zip(specs, self.logs, seats, strict=True):
            name = f"{self.role}-{spec.rank}"
            actor = remote_process(worker_class, log, name).options(
                runtime_env=runtime_env("model", spec.device, spec.threads),
                **seat,
            )
            self.ranks.append(actor.remote(spec))

    @property
    def handles(self) -> dict[str, Any]:
        """Ray handles by name, `actor 0` and so on."""
        return {f"{self.role} {number}": rank for number, rank in enumerate(self.ranks)}

    def forward_logprobs(self, sequences: Sequence[list[int]], temperature: float, phase: str) -> Pending:
        """-> [(log-probs, entropies)] a sequence, each [length] float32 aligned with its tokens."""

        def unpacked(value: tuple[Array, Array], batch: PackedBatch) -> list[tuple[Array, Array]]:
            return list(zip(*(unpack(part, batch.cu_seqlens) for part in value), strict=True))

        return self._forward("forward_logprobs", sequences, phase, unpacked, temperature)

    def forward_values(self, sequences: Sequence[list[int]], phase: str) -> Pending:
        """-> [values] a sequence, each [length] float32 aligned with the token that was chosen."""
        return self._forward("forward_values", sequences, phase, lambda value, batch: unpack(value, batch.cu_seqlens))

    def forward_scores(self, sequences: Sequence[list[int]], phase: str) -> Pending:
        """-> one float a sequence, read at its last token."""
        return self._forward("forward_scores", sequences, phase, lambda value, batch: [float(x) for x in value])

    def update(
        self, elements: Sequence[Element], loss: Any, normalizer: float, lr: float, temperature: float = 1.0
    ) -> Pending:
        """One optimizer step on all elements -> Update.

        normalizer: what the loss sum is divided by, a count over the whole batch. Raises Fault when ranks would run
        different numbers of micro-batches or a trainable tensor stood still in the first step.
        """
        layout = self._plan([e.length for e in elements], self.specs[0].cluster.train_tokens, "update")
        parts = [[pack_elements([elements[i] for i in micro], loss.fields) for micro in rank] for rank in layout.ranks]
        return self._call(
            "update", [(batches, loss, normalizer, lr, temperature) for batches in parts], "update", _merge
        )

    def send_weights(self, version: int, workers: dict[str, Any]) -> Pending:
        """Stream the whole model to rollout workers (name -> handle) -> (bytes sent to each, losses by name)."""
        return self._call(
            "send_weights", [(version, workers)] * self.world, "sync", lambda r: r[f"{self.role} 0"].value
        )

    def save(self, folder: str) -> Pending:
        """Every rank writes its part of model and optimizer."""
        return self._call("save", [(folder,)] * self.world, "checkpoint", _nothing)

    def load(self, folder: str, steps: int, universal: str | None = None) -> Pending:
        """Every rank reads its part back; universal: the same in DeepSpeed's format for another number of ranks."""
        return self._call("load", [(folder, steps, universal)] * self.world, "resume", _nothing)

    def export(self, folder: str, kind: str, extra: dict[str, Any] | None = None) -> Pending:
        """Write the model in Hugging Face layout; kind: policy, reward or critic."""
        return self._call("export", [(folder, kind, extra or {})] * self.world, "export", _nothing)

    def close(self) -> None:
        """End the processes."""
        import ray

        for rank in self.ranks:
            ray.kill(rank)

    def _plan(self, lengths: list[int], budget: int, phase: str) -> BatchPlan:
        """Raises Fault when ranks would run different numbers of micro-batches: their collectives would never meet."""
        layout = plan(lengths, self.world, budget)
        if len(counts := {len(rank) for rank in layout.ranks}) > 1:
            raise Fault(f"the ranks were given different numbers of micro-batches: {sorted(counts)}", phase=phase)
        return layout

    def _forward(
        self, method: str, sequences: Sequence[list[int]], phase: str, unpacked: Callable[..., list[Any]], *more: Any
    ) -> Pending:
        layout = self._plan([len(s) for s in sequences], self.specs[0].cluster.forward_tokens, phase)
        packed = [
            [pack_elements([Element([sequences[i]]) for i in micro], ()) for micro in rank] for rank in layout.ranks
        ]

        def finish(results: dict[str, WorkerResult]) -> list[Any]:
            answers: list[Any] = [None] * len(sequences)
            for rank, result in enumerate(results.values()):
                for micro, value, batch in zip(layout.ranks[rank], result.value, packed[rank], strict=True):
                    for index, answer in zip(micro, unpacked(value, batch), strict=False):
                        answers[index] = answer
            return answers

        return self._call(method, [(batches, *more) for batches in packed], phase, finish)

    def _call(self, method: str, arguments: list[tuple[Any, ...]], phase: str, finish: Callable[..., Any]) -> Pending:
        refs = {
            f"{self.role} {i}": getattr(rank, method).remote(*given)
            for i, (rank, given) in enumerate(zip(self.ranks, arguments, strict=True))
        }

        def gather(results: dict[str, WorkerResult]) -> Any:
            self.memory = max(self.memory, *(result.memory for result in results.values()))
            return finish(results)

        return Pending(self, refs, phase, gather)


def start_groups(groups: Sequence[ActorGroup]) -> None:
    """Have all groups load their models at the same time; fills in each group's `description`."""
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


def pack_elements(elements: list[Element], fields: Sequence[str]) -> PackedBatch:
    """Elements as one packed batch, with a `group` number a sequence; none makes a filler of weight zero.

    A filler is one sequence of two tokens whose fields are all zero: it runs through every collective and adds nothing.
    """
    if not elements:
        return PackedBatch(
            token_ids=np.zeros(2, np.int64),
            position_ids=np.arange(2),
            cu_seqlens=np.array([0, 2], np.int32),
            tokens={name: np.zeros(2, np.float32) for name in fields if name not in ("group", "rank")},
            sequences={name: np.zeros(1, np.int64) for name in ("group", "rank") if name in fields},
        )
    sequences = [sequence for element in elements for sequence in element.sequences]
    tokens = {name: [array for e in elements for array in e.tokens[name]] for name in elements[0].tokens}
    per_sequence = {
        name: [value for e in elements for value in e.per_sequence[name]] for name in elements[0].per_sequence
    }
    per_sequence["group"] = [number for number, e in enumerate(elements) for _ in e.sequences]
    return pack(sequences, tokens, {name: np.asarray(values) for name, values in per_sequence.items()})


def _merge(results: dict[str, WorkerResult]) -> Update:
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
    stats: dict[str, float] = {}
    for update in updates:
        for key, value in update.stats.items():
            if key not in stats:
                stats[key] = value
            elif key.endswith("_max"):
                stats[key] = max(stats[key], value)
            elif key.endswith("_min"):
                stats[key] = min(stats[key], value)
            else:
                stats[key] += value
    seconds = max(result.seconds for result in results.values())
    return Update(stats, updates[0].grad_norm, seconds, updates[0].micro_batches)


def _nothing(results: dict[str, WorkerResult]) -> None:
    return None
