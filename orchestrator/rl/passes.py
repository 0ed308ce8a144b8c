"""Passes: forward passes over a step's samples, started side by side and collected as columns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quadriga.actors.model.group import ActorGroup, Pending
from quadriga.orchestrator.rl.experience import Array, Experience, response_part

Columns = Mapping[str, list[Array]]


@dataclass(frozen=True)
class PendingColumns:
    """A pass under way."""

    collect: Callable[[], Columns]

    def result(self) -> Columns:
        """Wait for the pass; return its columns over response tokens. Raises Lost naming phase, role and rank."""
        return self.collect()


@dataclass(frozen=True)
class LogprobsPass:
    """Log-probs of a policy's tokens, and with `entropy` the entropies of its distributions, in nats.

    phase: part of the step that waits for it. temperature: divides the logits, as it did in sampling.
    """

    phase: str
    logprobs: str
    temperature: float
    entropy: str | None = None

    def start(self, group: ActorGroup, experience: Experience) -> PendingColumns:
        """Start the pass on every rank."""
        pending = group.forward_logprobs(experience.sequences, self.temperature, self.phase)

        def collect() -> Columns:
            pairs = list(zip(experience.samples, pending.result(), strict=True))
            columns = {self.logprobs: [response_part(sample, logprobs) for sample, (logprobs, _) in pairs]}
            if self.entropy is not None:
                columns[self.entropy] = [response_part(sample, entropy) for sample, (_, entropy) in pairs]
            return columns

        return PendingColumns(collect)


@dataclass(frozen=True)
class ValuesPass:
    """A critic's values, of the state in which each token was chosen."""

    phase: str
    values: str

    def start(self, group: ActorGroup, experience: Experience) -> PendingColumns:
        """Start the pass on every rank."""
        pending: Pending[list[Array]] = group.forward_values(experience.sequences, self.phase)
        samples = experience.samples
        return PendingColumns(
            lambda: {self.values: [response_part(s, v) for s, v in zip(samples, pending.result(), strict=True)]}
        )
