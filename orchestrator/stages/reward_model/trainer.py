"""Reward model: all answers to a prompt in one element, all pairs of them in the loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quadriga.actors.model.batch import Element
from quadriga.actors.model.folder import check_context, model_path
from quadriga.actors.model.heads import scalar_spec
from quadriga.data.records import RankedTokens
from quadriga.kernels.losses.base import Loss
from quadriga.kernels.losses.ranking import Ranking
from quadriga.orchestrator.cluster.processes import ModelUse
from quadriga.orchestrator.evaluation.statistics import pair_accuracy, wilson_interval
from quadriga.orchestrator.stages.reward_model.spec import RewardStage
from quadriga.orchestrator.training.checkpoint import Export
from quadriga.orchestrator.training.supervised import SupervisedStage

ZERO_ROWS = 1024
"""Largest number of demonstrations (or answers) whose mean score becomes the zero of the reward model."""


class Reward(SupervisedStage):
    """A reward model trained on rankings."""

    trained = ("reward",)
    settings: RewardStage

    def load_inputs(self) -> None:
        """Load rankings, split by prompt, and the demonstrations whose mean score is calibrated to 0."""
        from quadriga.data.loading.datasets import load_demonstrations, load_rankings
        from quadriga.data.tokens.tokenizer import load_tokenizer

        settings = self.settings
        self.path = model_path(settings.model, "model")
        self.tokenizer = load_tokenizer(self.path)
        check_context(self.path, settings.data.max_tokens, "data.max_tokens")
        split = load_rankings(settings.data, self.tokenizer, settings.seed)
        self.note_rows(split, settings.data.max_tokens)
        self.elements = [_ranking_element(row) for row in split.train]
        self.heldout = [_ranking_element(row) for row in split.heldout]
        if settings.demonstrations is not None:
            rows = load_demonstrations(settings.demonstrations, self.tokenizer, settings.seed).train
            self.zero = [row.token_ids for row in rows if not all(row.loss_mask[1:])][:ZERO_ROWS]
        else:
            self.zero = [sequence for element in self.elements for sequence in element.sequences][:ZERO_ROWS]

    def models(self) -> list[ModelUse]:
        """Return the model; its head has no bias, because a difference of scores cannot teach one."""
        spec = scalar_spec(self.path, self.settings.seed, None, self.settings.head_std)
        return [ModelUse("reward", spec, self.settings.optimizer)]

    def loss(self) -> Loss:
        """Return the pairwise loss."""
        return Ranking()

    def units(self, elements: Sequence[Element]) -> float:
        """Return the number of prompts: each weighs the same, however many answers it has."""
        return float(len(elements))

    def exports(self) -> dict[str, Export]:
        """Return the reward model, shifted such that demonstrations score 0 on average."""
        from quadriga.data.tokens.tokenizer import pad_token_id

        shift = float(np.mean(self.group("reward").forward_scores(self.zero, "reward_shift").result()))
        extra = {"reward_shift": shift, "pad_token_id": pad_token_id(self.tokenizer)}
        return {"reward": Export(self.group("reward"), "reward", extra)}

    def measure(self) -> dict[str, float]:
        """Return held-out loss, pair accuracy (mean per prompt first) with its interval, and calibration over pairs."""
        sequences = [sequence for element in self.heldout for sequence in element.sequences]
        scores = iter(self.group("reward").forward_scores(sequences, "heldout").result())
        margins = [_margins([next(scores) for _ in e.sequences], e.per_sequence["rank"]) for e in self.heldout]
        flat = np.concatenate(margins)
        accuracy = wilson_interval(float(sum(np.heaviside(m, 0.5).mean() for m in margins)), len(margins))
        return {
            "eval/loss": float(np.mean([np.logaddexp(0, -m).mean() for m in margins])),
            "eval/accuracy": accuracy.mean,
            "eval/accuracy_low": accuracy.low,
            "eval/accuracy_high": accuracy.high,
            "eval/margin": float(flat.mean()),
            "eval/calibration_error": pair_accuracy(flat).calibration_error,
            "eval/pairs": float(len(flat)),
        }


def _ranking_element(row: RankedTokens) -> Element:
    return Element(row.sequences, per_sequence={"rank": list(row.ranks)})


def _margins(scores: list[float], ranks: list[int]) -> Any:
    pairs = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
    return np.asarray([scores[i] - scores[j] for i, j in pairs], np.float64)
