"""The pairwise loss of a reward model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from quadriga.kernels.losses.base import Fields, Head, Loss, Stats, largest


@dataclass(frozen=True)
class Ranking(Loss):
    """Pairwise loss of ranked answers, all pairs of a prompt together (Ouyang et al. 2022, equation 1).

    Per prompt, the mean over its comparisons of -log sigmoid(score of the better - score of the worse). Tied answers
    are not compared; K answers without ties make K(K-1)/2 comparisons. Every prompt weighs the same, however many
    answers it has; one with only tied answers adds nothing.
    Output scores [N]; fields group [N] (equal numbers: one prompt, whole in this micro-batch) and rank [N] (0 is best).
    Statistics: `accuracy` (equal scores are half right) and `margin`, per prompt the mean over its comparisons;
    `pairs`, the number of comparisons; `score_min` and `score_max` over the answers to prompts with several.
    """

    head: ClassVar[Head] = "scores"
    fields: ClassVar[tuple[str, ...]] = ("group", "rank")

    def __call__(self, output: Fields, fields: Fields) -> tuple[Tensor, Stats]:
        scores, group = output["scores"].float(), fields["group"]
        better, worse, weight = self._pairs(fields)
        margin = scores[better] - scores[worse]
        loss = -(logsigmoid(margin) * weight).sum()
        with torch.no_grad():
            # A filler is a prompt with one answer: it is compared with nothing, and its score is nobody's.
            real = scores[(group[:, None] == group).sum(1) > 1]
            return loss, {
                "loss": loss.detach(),
                "accuracy": (torch.heaviside(margin, margin.new_tensor(0.5)) * weight).sum(),
                "margin": (margin * weight).sum(),
                "pairs": torch.tensor(float(len(margin)), device=scores.device),
                "score_min": -largest(-real),
                "score_max": largest(real),
            }

    @staticmethod
    def _pairs(fields: Fields) -> tuple[Tensor, Tensor, Tensor]:
        """Return, per comparison, the indices of the better and worse answer and 1 / comparisons of the prompt."""
        group, rank = fields["group"], fields["rank"]
        better, worse = ((group[:, None] == group) & (rank[:, None] < rank)).nonzero(as_tuple=True)
        _, prompt, counts = torch.unique(group[better], return_inverse=True, return_counts=True)
        return better, worse, 1.0 / counts[prompt].float()
