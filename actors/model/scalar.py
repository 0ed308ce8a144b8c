"""ScalarModel: the decoder of any causal family and a linear layer that gives one number per token."""

from typing import Any

import torch
from torch import Tensor, nn

from quadriga.actors.model.folder import stored_head
from quadriga.data.errors import UserError


class ScalarModel(nn.Module):
    """Critic or reward model: a base model with its head, `score`, for every family alike.

    Parameters have the names of Hugging Face's classes for sequence and token classification: the base model is under
    its family's prefix.
    """

    def __init__(self, base: Any, seed: int, bias: float | None, head_std: float | None = None):
        """Take the head of the base model's folder under any of its names, or else start one at random.

        base: from `AutoModel`. seed, head_std: a random weight is N(0, head_std^2), by default N(0, 1/(d+1)) (Stiennon
        et al. 2020, appendix B.1). bias: is added to the folder's, and the sum is trained; None keeps that fixed.
        """
        super().__init__()
        self.config = base.config
        self.prefix = base.base_model_prefix
        setattr(self, self.prefix, base)
        size = base.config.get_text_config().hidden_size
        self.score = nn.Linear(size, 1, dtype=base.dtype)
        weight, stored_bias = stored_head(base.config.name_or_path)
        if weight is not None and weight.shape[0] != 1:
            raise UserError(
                f"The head of {base.config.name_or_path} has {weight.shape[0]} labels, and a critic or reward model "
                "has one. Give a model with one label, or the causal language model that it was made from."
            )
        if weight is None:
            generator = torch.Generator().manual_seed(seed)
            weight = torch.randn(1, size, generator=generator) * ((size + 1) ** -0.5 if head_std is None else head_std)
        with torch.no_grad():
            self.score.weight.copy_(weight)
            self.score.bias.fill_(stored_bias + (bias or 0.0))
        self.score.bias.requires_grad_(bias is not None)

    @property
    def base(self) -> Any:
        """The base model, a Hugging Face model."""
        return getattr(self, self.prefix)

    def forward(self, **inputs: Any) -> Tensor:
        """Return the head's output [1, T]. inputs: of the base model."""
        output: Tensor = self.score(self.base(**inputs)[0])
        return output[..., 0]
