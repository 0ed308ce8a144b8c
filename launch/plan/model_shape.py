"""Parameters and activations of a decoder-only transformer, counted without allocating its weights."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from quadriga.actors.model.heads import Head
from quadriga.data.errors import UserError


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer on which its memory and time depend. queries, keys: elements per token of one
    layer's queries and of its keys (and as many of its values). gated: the MLP has a gate beside its up projection.
    tied: the head is the embedding. inside: parameters of the layers. body, body_tensors: parameters without the head,
    and the tensors that they are in."""

    layers: int
    hidden: int
    heads: int
    queries: int
    keys: int
    intermediate: int
    vocab: int
    gated: bool
    tied: bool
    inside: int
    body: int
    body_tensors: int

    @property
    def embedding(self) -> int:
        """Count the parameters of the token embedding, and so of the language-model head."""
        return self.vocab * self.hidden

    @property
    def largest(self) -> int:
        """Count the parameters of the largest module, which ZeRO-3 gathers whole."""
        return max(self.embedding, self.hidden * self.intermediate)

    def parameters(self, head: Head = "logprobs") -> int:
        """Count all parameters. A scalar head is a row of `hidden` weights and a bias."""
        return self.body + (self.hidden + 1 if head == "scalar" else 0 if self.tied else self.embedding)

    def tensors(self, head: Head = "logprobs") -> int:
        """Count all tensors."""
        return self.body_tensors + (2 if head == "scalar" else 0 if self.tied else 1)

    def training_activations(self, width: int) -> int:
        """Return the bytes per token that eager autograd keeps of a forward pass. width: bytes of a number. There are
        no dropout masks or attention scores as in Korthikanti et al. 2022, section 4; of the head, only its input."""
        attention = 3 * self.queries + 2 * self.keys  # q, k, v, the kernel's output, the projection's input
        # RMSNorm computes in float32: its input there, the scaled input, its output; two norms per layer. A gated MLP
        # keeps gate, its SiLU, up, their product; another one up, and four factors of the tanh approximation of GELU.
        norm, mlp = (12 if width == 4 else 8, 4) if self.gated else (2 * width, 5)
        layer = 2 * norm * self.hidden + (attention + mlp * self.intermediate) * width
        return self.layers * layer + self.hidden * (3 * width + 4)

    def forward_activations(self, width: int) -> int:
        """Return the bytes per token that exist at once in a forward pass without gradient, at a layer's widest."""
        # The model's function keeps its embeddings, cosines and sines; a layer its input, and each half its normed one.
        kept = 4 * self.hidden + 2 * self.queries // self.heads
        mlp, attention = (3 if self.gated else 4) * self.intermediate, 2 * (self.queries + 2 * self.keys)
        return (kept + max(mlp, attention)) * width


def shape_of(config: Any, vocab: int | None = None) -> ModelShape:
    """Count a Hugging Face config's model on torch's meta device, which allocates nothing. vocab: another vocabulary
    size. Raises UserError where the config does not describe a decoder-only transformer."""
    config = copy.deepcopy(config)
    try:
        config.vocab_size = vocab or config.vocab_size
        layers, hidden, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises many kinds for a config that it cannot build
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"A {config.model_type} model cannot be planned: it is not a causal LM ({reason}).") from None
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    inside = [name for name in sizes if any(part.isdigit() for part in name.split("."))]
    head_size, tied = getattr(config, "head_dim", None) or hidden // heads, bool(config.tie_word_embeddings)
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        queries=heads * head_size,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        intermediate=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden,
        vocab=config.vocab_size,
        gated=any("gate" in name for name in inside),
        tied=tied,
        inside=sum(sizes[name] for name in inside),
        body=sum(sizes.values()) - (0 if tied else config.vocab_size * hidden),
        body_tensors=len(sizes) - (0 if tied else 1),
    )
