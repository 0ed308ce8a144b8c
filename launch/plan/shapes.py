"""How many numbers a model is made of: from the fields of its config.json, without building or loading it."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from quadriga.actors.model.heads import Head
from quadriga.data.errors import UserError

ROTARY = ("llama", "mistral", "qwen2", "qwen3")
"""Families with RMSNorm, rotary positions and a gated MLP: Touvron et al. 2023, section 2.2."""

Bias = Literal["none", "qkv", "all"]


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer, as far as memory and time depend on it.

    heads, kv_heads: query heads, and the key/value heads that they share. gated: the MLP has a gate beside its up
    projection. tied: the head is the embedding. positions: rows of a learned position table, 0 without one.
    layer: parameters of one layer. layer_tensors: the tensors they are in. around: embeddings, positions and last norm.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool
    gated: bool
    positions: int
    layer: int
    layer_tensors: int
    around: int

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, and so of the language-model head."""
        return self.vocab * self.hidden

    def parameters(self, head: Head = "logprobs") -> int:
        """Parameters in all. A scalar head is a row of `hidden` weights and a bias."""
        top = (0 if self.tied else self.embedding) if head == "logprobs" else self.hidden + 1
        return self.layers * self.layer + self.around + top

    @property
    def largest(self) -> int:
        """Parameters of the largest module, which ZeRO-3 gathers whole: the embedding, or a matrix of a layer."""
        return max(self.embedding, self.hidden * self.intermediate)

    def tensors(self, head: Head = "logprobs") -> int:
        """Tensors in all."""
        top = (0 if self.tied else 1) if head == "logprobs" else 2
        return self.layers * self.layer_tensors + (2 if not self.positions else 4) + top

    @property
    def kv_size(self) -> int:
        """Elements of one layer's keys (and as many of its values) of a token."""
        return self.kv_heads * self.head_size

    def matmul(self, head: Head = "logprobs") -> int:
        """Parameters that every token is multiplied with: 2 floating-point operations each (Kaplan et al. 2020,
        section 2.1). The embedding is a look-up; as a head it is a product."""
        return self.layers * self.layer + (self.embedding if head == "logprobs" else self.hidden)


def shape_of(config: Any, vocab: int | None = None) -> ModelShape:
    """The shape that a Hugging Face config describes.

    vocab: another vocabulary size, as pre-training gives a fresh model that of its tokenizer.
    Families that are not known here are built on torch's meta device, which allocates nothing.
    Raises UserError where the config describes no decoder-only transformer.
    """
    hidden = _number(config, "hidden_size")
    heads = _number(config, "num_attention_heads")
    size = getattr(config, "head_dim", None) or hidden // heads
    shape = ModelShape(
        family=str(config.model_type),
        layers=_number(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=size,
        intermediate=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden,
        vocab=vocab or _number(config, "vocab_size"),
        tied=bool(config.tie_word_embeddings),
        gated=True,
        positions=0,
        layer=0,
        layer_tensors=0,
        around=0,
    )
    if shape.family in ROTARY:
        return _rotary(shape, config)
    return _gpt2(shape, config) if shape.family == "gpt2" else _built(shape, config)


def _rotary(shape: ModelShape, config: Any) -> ModelShape:
    h, m, q, kv = shape.hidden, shape.intermediate, shape.heads * shape.head_size, shape.kv_size
    layer, tensors = 2 * h * q + 2 * h * kv + 3 * h * m + 2 * h, 9
    bias: Bias = "all" if getattr(config, "attention_bias", False) else "qkv" if shape.family == "qwen2" else "none"
    if bias != "none":
        layer, tensors = layer + q + 2 * kv, tensors + 3
    if bias == "all":
        layer, tensors = layer + h, tensors + 1
    if getattr(config, "mlp_bias", False):
        layer, tensors = layer + 2 * m + h, tensors + 3
    if shape.family == "qwen3":  # norms of each query and key head
        layer, tensors = layer + 2 * shape.head_size, tensors + 2
    return replace(shape, layer=layer, layer_tensors=tensors, around=shape.embedding + h)


def _gpt2(shape: ModelShape, config: Any) -> ModelShape:
    """Radford et al. 2019: biases everywhere, learned positions, norms with a shift."""
    h, m = shape.hidden, shape.intermediate
    layer = (h * 3 * h + 3 * h) + (h * h + h) + (h * m + m) + (m * h + h) + 4 * h
    positions = _number(config, "max_position_embeddings")
    around = shape.embedding + positions * h + 2 * h
    return replace(shape, gated=False, positions=positions, layer=layer, layer_tensors=12, around=around)


def _built(shape: ModelShape, config: Any) -> ModelShape:
    """Count the tensors of a model without storage. What the layers share is counted with what is around them."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.vocab_size = shape.vocab
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"A model of type {shape.family} cannot be planned: it is no causal LM ({reason}).") from None
    inside = [(name, p) for name, p in model.named_parameters() if any(part.isdigit() for part in name.split("."))]
    total = sum(p.numel() for p in model.parameters())
    top = 0 if shape.tied else shape.embedding
    layer = sum(p.numel() for _, p in inside) // shape.layers
    return replace(
        shape,
        gated=any("gate" in name for name, _ in inside),
        layer=layer,
        layer_tensors=len(inside) // shape.layers,
        around=total - top - shape.layers * layer,
    )


def _number(config: Any, field: str) -> int:
    value = getattr(config, field, None)
    if not isinstance(value, int) or value < 1:
        raise UserError(
            f"A model of type {config.model_type} cannot be planned: its config has no `{field}`. Plan a decoder-only "
            "language model, such as a Llama, Mistral, Qwen or GPT-2."
        )
    return value
