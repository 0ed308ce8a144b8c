"""SampleSource: where the samples of a step come from; the step does not know which kind it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from quadriga.actors.settings import SamplingSettings
from quadriga.data.loading.batch_order import batch_indices
from quadriga.data.records import Prompt, Sample, with_unique_ids
from quadriga.orchestrator.rollout.pool import RolloutPool
from quadriga.orchestrator.training import invariants


class SampleSource(Protocol):
    """Gives each step its samples, grouped by prompt."""

    def samples(self, step: int, progress: Callable[[int, int], None] | None = None) -> list[Sample]:
        """Return the samples of step number `step`, from 0. progress: called with (finished, requested)."""
        ...


@dataclass(frozen=True)
class OnPolicy:
    """Samples that the current policy answers in this very step, in the order of (prompt, sample index).

    prompts_per_step: drawn from an order that is shuffled once per epoch. seed: of that order and of the sampling.
    """

    pool: RolloutPool
    prompts: list[Prompt]
    prompts_per_step: int
    samples_per_prompt: int
    sampling: SamplingSettings
    seed: int

    def samples(self, step: int, progress: Callable[[int, int], None] | None = None) -> list[Sample]:
        """Sample this step's answers. Raises Fault if one was drawn by another policy version than `step`."""
        indices = batch_indices(step, self.prompts_per_step, len(self.prompts), self.seed)
        # A prompt may be in the batch twice (small data, epoch border): its ids give each its own seeds.
        prompts = with_unique_ids([self.prompts[i] for i in indices])
        samples = self.pool.generate(prompts, self.samples_per_prompt, self.sampling, self.seed, step, progress)
        invariants.served_by(samples, step)
        return samples
