"""Updates: epochs of minibatches, in which all trained models step side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from quadriga.actors.model.batch import LossPart
from quadriga.actors.model.group import ActorGroup, Update
from quadriga.data.loading.batch_order import batch_indices, hash_seed
from quadriga.kernels.losses.base import Loss
from quadriga.kernels.statistics import reduce_statistics
from quadriga.orchestrator.rl.experience import Experience


@dataclass(frozen=True)
class Term:
    """A loss that a model minimises over the samples. name: prefix of its statistics; the main one has none."""

    loss: Loss
    coefficient: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class Trainee:
    """A model that is trained. terms: what it minimises, all over the same samples, so in one forward pass."""

    role: str
    terms: Sequence[Term]

    def parts(
        self, experience: Experience, minibatch: Sequence[int], units: float, unmoved: bool = False
    ) -> list[LossPart]:
        """Return the parts of one optimizer step.

        units: their normaliser, the sum of the samples' units. unmoved: whether the weights are still those that
        sampled, and the losses may know it.
        """
        fields = dict.fromkeys(name for term in self.terms for name in term.loss.fields)
        elements = experience.elements(minibatch, list(fields))
        losses = [term.loss.of_unmoved_weights() if unmoved else term.loss for term in self.terms]
        return [
            LossPart(loss, elements, units, term.coefficient, term.name)
            for loss, term in zip(losses, self.terms, strict=True)
        ]


@dataclass(frozen=True)
class Minibatch:
    """What one optimizer step did. tokens: action tokens in it. units: its normaliser."""

    update: Update
    tokens: float
    units: float


def minibatches(samples: int, size: int, epochs: int, seed: int, step: int) -> Iterator[list[int]]:
    """Yield the samples of each optimizer step, ascending; each epoch has an order of its own.

    Where `size` does not divide the number of samples, as when an answer was dropped, the minibatches of an epoch are
    smaller and differ by one sample at most: a rest of its own would be a whole optimizer step from a few samples.
    """
    number = max(1, -(-samples // size))
    borders = [samples * index // number for index in range(number + 1)]
    for epoch in range(epochs):
        order = batch_indices(0, samples, samples, hash_seed(seed, step, epoch))
        for start, end in pairwise(borders):
            yield sorted(order[start:end])


def train(
    trainees: Sequence[Trainee],
    groups: Mapping[str, ActorGroup],
    experience: Experience,
    order: Iterator[list[int]],
    rates: Mapping[str, float],
    temperature: float,
    check_first: Callable[[dict[str, Update], float], None],
    first_is_unmoved: bool = False,
) -> dict[str, float]:
    """Do one optimizer step per minibatch of `order` on every trainee; return their metrics as `role/name`.

    rates: learning rate per role. check_first: called with the updates of the first minibatch, by role, and its tokens.
    first_is_unmoved: whether the losses of the first minibatch take the new log-probs for the old ones: in bfloat16,
    micro-batches of another shape round otherwise.
    """
    done: dict[str, list[Minibatch]] = {trainee.role: [] for trainee in trainees}
    first = True
    for minibatch in order:
        tokens = float(sum(sum(experience.samples[i].action_mask) for i in minibatch))
        units = float(sum(experience.numbers["units"][i] for i in minibatch))
        pending = {
            trainee.role: groups[trainee.role].update(
                trainee.parts(experience, minibatch, units, first and first_is_unmoved),
                rates[trainee.role],
                temperature,
            )
            for trainee in trainees
        }
        updates = {role: call.result() for role, call in pending.items()}
        for role, update in updates.items():
            done[role].append(Minibatch(update, tokens, units))
        if first:
            check_first(updates, tokens)
            first = False
    metrics = {f"{role}/lr": rates[role] for role in done}
    for role, steps in done.items():
        metrics |= {f"{role}/{key}": value for key, value in _merged(steps).items()}
    return metrics


def _merged(steps: Sequence[Minibatch]) -> dict[str, float]:
    """Return the statistics of a model's optimizer steps: the mean gradient norm, means, extremes.

    A loss is divided by the units, any other sum by the number of tokens.
    """
    tokens, units = sum(step.tokens for step in steps), sum(step.units for step in steps)
    sums = reduce_statistics(step.update.stats for step in steps)
    sums.pop("entropy", None)  # logged from the forward pass, before any update
    means = {}
    for name, value in sums.items():
        extreme, loss = name.endswith(("_max", "_min")), name == "loss" or name.endswith("_loss")
        means[name] = value if extreme else value / (units if loss else tokens)
    return {"grad_norm": float(np.mean([step.update.grad_norm for step in steps]))} | means
