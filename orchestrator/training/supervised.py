"""SupervisedStage: what pre-training, fine-tuning and reward modelling share: batches of elements, one loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.group import ActorGroup
from quadriga.actors.model.heads import ModelSpec
from quadriga.data.loading.batch_order import batch_indices
from quadriga.data.records import Tokens
from quadriga.kernels.losses.base import Loss
from quadriga.kernels.losses.likelihood import NegativeLogLikelihood
from quadriga.kernels.statistics import mean_statistics
from quadriga.orchestrator.cluster.processes import ModelUse
from quadriga.orchestrator.settings import TrainStage
from quadriga.orchestrator.training import lr_schedule as schedule
from quadriga.orchestrator.training.checkpoint import Export
from quadriga.orchestrator.training.trainer import TrainingStage

if TYPE_CHECKING:
    from quadriga.data.loading.datasets import Cuts, Split


class SupervisedStage(TrainingStage):
    """A stage that steps over `self.elements` and measures `self.heldout`; by default it trains a causal LM.

    Subclasses load the data, which sets both, and `self.path`, the folder that the model starts from.
    """

    trained = ("actor",)
    settings: TrainStage
    path: str
    elements: list[Element]
    heldout: list[Element]
    cuts: "Cuts | None" = None
    """Account of the answers that `data.max_tokens` shortened; None for rows without answers."""

    def note_rows(self, split: "Split[Any]", max_tokens: int) -> None:
        """Keep the account of the rows that were left out and of the answers that were cut, and notes on the others."""
        self.skipped, self.cuts = split.skipped, split.cuts
        cut = split.cuts.sentence(max_tokens)
        self.notes = [*split.notes, *([f"{cut}."] if cut else [])]

    def models(self) -> list[ModelUse]:
        """Return the model that is trained."""
        return [ModelUse("actor", ModelSpec(self.path, "logprobs"), self.settings.optimizer)]

    def exports(self) -> dict[str, Export]:
        """Return the policy."""
        return {"policy": Export(self.group("actor"), "policy", {})}

    def loss(self) -> Loss:
        """Return what is minimised; its fields are those of the elements."""
        return NegativeLogLikelihood()

    def units(self, elements: Sequence[Element]) -> float:
        """Return the divisor of a loss sum over these elements: the sum of their weights."""
        return float(sum(np.sum(weights) for element in elements for weights in element.tokens["weights"]))

    def step(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Run one optimizer step, and measure when due."""
        settings, number = self.settings, self.state.step
        batch = [
            self.elements[i] for i in batch_indices(number, settings.batch_size, len(self.elements), settings.seed)
        ]
        rate = schedule.lr(number, settings.total_steps, settings.optimizer)
        units, tokens = self.units(batch), sum(element.length for element in batch)
        with self.timed("update"):
            part = LossPart(self.loss(), batch, units)
            update = self.group(self.trained[0]).update([part], rate).result()
        self.state.tokens += tokens
        self.state.samples += len(batch)
        metrics = {f"train/{key}": value for key, value in mean_statistics(update.stats, units).items()}
        metrics |= {"train/lr": rate, "train/grad_norm": update.grad_norm}
        metrics |= {"train/epoch": self.state.samples / len(self.elements)}
        metrics |= {"perf/tokens_per_second": tokens / self.timings["update"]}
        if number == 0 and self.cuts is not None and self.cuts.cut:  # of the whole data set, so once
            metrics |= {"train/answers_cut": float(self.cuts.cut)}
            metrics |= {"train/answers_without_end": float(self.cuts.without_end)}
        every = settings.heldout_every
        last = number + 1 == settings.total_steps
        if self.heldout and (last or (every is not None and (number + 1) % every == 0)):
            with self.timed("heldout"):
                metrics |= self.measure()
            self.state.measured.append((number + 1, metrics["eval/loss"]))
        return metrics, []

    def measure(self) -> dict[str, float]:
        """Return the held-out loss, in nats per token."""
        total, count = _token_losses(self.group("actor"), self.heldout)
        return {"eval/loss": total / count}


def _token_losses(group: ActorGroup, elements: list[Element]) -> tuple[float, float]:
    """Return (sum of -log p, number of tokens) over the tokens of elements that are learned."""
    sequences = [sequence for element in elements for sequence in element.sequences]
    masks = [weights for element in elements for weights in element.tokens["weights"]]
    results = group.forward_logprobs(sequences, 1.0, "heldout").result()
    total = sum(
        float(-(logprobs.astype(np.float64) * mask).sum()) for (logprobs, _), mask in zip(results, masks, strict=True)
    )
    return total, float(sum(mask.sum() for mask in masks))


def masked_element(rows: list[Tokens]) -> Element:
    """Sequences that stay together, with the loss mask of each."""
    return Element(
        [row.token_ids for row in rows], tokens={"weights": [np.asarray(row.loss_mask, np.float32) for row in rows]}
    )
