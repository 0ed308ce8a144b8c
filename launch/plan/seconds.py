"""Seconds of a step: the work of each phase, divided by the speed of a machine, and phases that overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from quadriga.actors.model.heads import Head
from quadriga.actors.runtime.device import cores
from quadriga.launch.plan.activations import training_activations
from quadriga.launch.plan.devices import seated
from quadriga.launch.plan.memory import element_size
from quadriga.launch.plan.shapes import ModelShape
from quadriga.launch.plan.stages import Member, PlannedStage
from quadriga.launch.plan.work import Elements, Work, micro_batches, work_of
from quadriga.orchestrator.cluster.placement import threads


@dataclass(frozen=True)
class Call:
    """What one rank computes in one call: lengths of the sequences of its micro-batches."""

    shape: ModelShape
    head: Head
    micro_batches: Elements
    ranks: int
    width: int
    trains: bool

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return sum(sum(micro) for micro in self.micro_batches)

    @property
    def flops(self) -> float:
        """Floating-point operations: 2 a parameter and token forward, twice that backward (Kaplan et al. 2020, section
        2.1), causal attention's half square, and the head's logits once more in backward."""
        shape = self.shape
        head = shape.embedding if self.head == "logprobs" else 0
        squares = sum(length * length for micro in self.micro_batches for length in micro)
        attention = 2 * shape.layers * shape.heads * shape.head_size * squares
        forward = 2.0 * shape.matmul(self.head) * self.tokens + attention
        return forward * 3 + 2.0 * head * self.tokens if self.trains else forward

    @property
    def moved(self) -> float:
        """Bytes that layers write: what backward needs is a good measure of it, of a forward pass too."""
        return float(self.tokens * training_activations(self.shape, self.width) * (3 if self.trains else 1))

    @property
    def gathered(self) -> float:
        """Bytes of weights that ZeRO-3 makes whole: in every micro-batch, forward and backward."""
        times = len(self.micro_batches) * (2 if self.trains else 1)
        return float(times * self.width * self.shape.parameters(self.head))

    @property
    def sent(self) -> float:
        """Bytes between ranks: the gathers, and gradients once a micro-batch (Rajbhandari et al. 2020, section 7.2)."""
        gradients = self.gathered / 2 if self.trains else 0.0
        return (self.gathered + gradients) * (self.ranks - 1) / self.ranks


@dataclass(frozen=True)
class Generation:
    """What one engine draws in one call: so many answers of `answer` tokens, at most `running` at once."""

    shape: ModelShape
    prompts: list[int]
    answer: int
    running: int
    width: int
    parts: int = 1

    @property
    def steps(self) -> int:
        """Runs of the engine: one a token of each wave of requests, and those that only read prompts."""
        waves = -(-len(self.prompts) // self.running)
        return waves * self.answer + sum(self.prompts) // 8192

    @property
    def drawn(self) -> int:
        """Tokens of all answers."""
        return len(self.prompts) * self.answer

    @property
    def flops(self) -> float:
        """Forward passes over prompts and answers; logits of answers only."""
        shape = self.shape
        inside = 2.0 * shape.layers * shape.layer * (sum(self.prompts) + self.drawn)
        return inside + 2.0 * shape.embedding * self.drawn

    @property
    def read(self) -> float:
        """Bytes of weights, read at every step, and of keys and values, read for every token drawn."""
        shape = self.shape
        mean = sum(self.prompts) / len(self.prompts) + self.answer / 2
        cache = 2 * shape.layers * shape.kv_size * mean * self.drawn
        return self.width * (float(shape.parameters()) * self.steps + cache)


class Speeds(Protocol):
    """How fast a device is."""

    def call(self, call: Call, threads: int) -> float:
        """Seconds of a call by itself. threads: of the process, on CPU."""
        ...

    def generation(self, generation: Generation) -> float:
        """Seconds of an engine by itself."""
        ...

    def sync(self, shape: ModelShape, width: int) -> float:
        """Seconds from the trainer's weights to those of the engines."""
        ...

    @property
    def slowdown(self) -> float:
        """What a process takes beside others that compute, over what it takes alone."""
        ...


@dataclass(frozen=True)
class StepTime:
    """Seconds of each phase and of a step; what they assume, in sentences."""

    phases: dict[str, float]
    step: float
    assumed: list[str]


def step_time(stage: PlannedStage, device: str, speeds: Speeds) -> StepTime:
    """Phases follow one another; inside of one, models work side by side."""
    work = work_of(stage)
    phases: dict[str, float] = {}
    if work.prompts:
        phases["generate"] = _generate(stage, device, speeds, work)
    if work.sequences:
        budget = stage.cluster.forward_tokens
        calls = [_call(stage, member, work.sequences, budget, trains=False) for member in stage.members]
        phases["forward"] = _side_by_side(stage, device, speeds, stage.members, calls)
    if work.updates:
        trained, budget = [member for member in stage.members if member.trained], stage.cluster.train_tokens
        phases["update"] = sum(
            _side_by_side(
                stage, device, speeds, trained, [_call(stage, m, elements, budget, trains=True) for m in trained]
            )
            for elements in work.updates
        )
    if stage.syncs:
        assert stage.engine is not None
        phases["sync"] = speeds.sync(stage.engine, element_size(stage.cluster))
    return StepTime(phases, sum(phases.values()), work.assumed)


def _call(stage: PlannedStage, member: Member, elements: Elements, budget: int, trains: bool) -> Call:
    ranks = stage.cluster.model_worker(member.role).ranks
    micro = micro_batches(elements, ranks, budget)
    return Call(member.shape, member.head, micro, ranks, element_size(stage.cluster), trains)


def _generate(stage: PlannedStage, device: str, speeds: Speeds, work: Work) -> float:
    rollout, shape = stage.cluster.rollout, stage.engine
    assert shape is not None
    share = work.prompts[:: rollout.workers]
    generation = Generation(
        shape, share, work.answer, rollout.max_num_seqs, element_size(stage.cluster), rollout.tensor_parallel
    )
    alone = speeds.generation(generation)
    if device == "cuda":
        return alone
    return _on_cores([(alone, rollout.workers, rollout.threads)], speeds.slowdown)


def _side_by_side(
    stage: PlannedStage, device: str, speeds: Speeds, members: Sequence[Member], calls: Sequence[Call]
) -> float:
    """Of calls that are made at the same time."""
    if device == "cuda":  # those of one GPU take turns
        alone: dict[str, float] = {
            member.role: speeds.call(call, 1) for member, call in zip(members, calls, strict=True)
        }
        return max(sum(alone.get(role, 0.0) for role in set(gpu)) for host in seated(stage) for gpu in host)
    ranks = [stage.cluster.model_worker(member.role).ranks for member in stage.members]
    given = [
        threads(stage.cluster.model_worker(member.role).threads, cores(), min(cores(), sum(ranks)))
        for member in members
    ]
    each = [(speeds.call(call, count), call.ranks, count) for call, count in zip(calls, given, strict=True)]
    return _on_cores(each, speeds.slowdown)


def _on_cores(calls: list[tuple[float, int, int]], slowdown: float) -> float:
    """(seconds alone, processes, threads of each) -> until the last has ended; they share the cores evenly."""
    busy = sum(seconds * processes * count for seconds, processes, count in calls)
    together = slowdown if sum(processes for _, processes, _ in calls) > 1 else 1.0
    return together * max(max(seconds for seconds, _, _ in calls), busy / cores())
