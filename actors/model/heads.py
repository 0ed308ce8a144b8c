"""Hugging Face models as packed, chunked per-token functions: log-probs from a causal LM, scalars from a head.

A causal LM's head is replaced by `linear_logprobs`, so logits never exist whole; it lives inside the head's own forward
because ZeRO-3 gathers a parameter only for the forward of the module that owns it. Critic and reward model are the
same token-classification model with one label; what differs is which positions are read and how they are exported.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quadriga.actors.model.folder import read_config, stored_head
from quadriga.data.errors import UserError

Head = Literal["logprobs", "scalar"]


@dataclass(frozen=True)
class ModelSpec:
    """What a host loads.

    path: folder with config.json and safetensors weights. head: causal LM or one scalar a token. seed: of a scalar head
    that the folder does not have, drawn from N(0, head_std^2); None: 1 / sqrt(hidden size + 1). bias: start value of
    the scalar head's bias; None leaves it out of training at 0.
    """

    path: str
    head: Head
    seed: int = 0
    bias: float | None = None
    head_std: float | None = None


def scalar_spec(path: str, seed: int, bias: float | None, head_std: float | None = None) -> ModelSpec:
    """A critic or reward model."""
    return ModelSpec(path, "scalar", seed=seed, bias=bias, head_std=head_std)


def load_model(spec: ModelSpec, dtype: Any) -> Any:
    """The model of a spec, in eval mode (dropout stays off in every stage), ready for packed batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    from quadriga.kernels.attention import register_varlen_attention

    read_config(spec.path)
    register_varlen_attention()
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "quadriga_varlen", "use_safetensors": True}
    try:
        if spec.head == "logprobs":
            model = AutoModelForCausalLM.from_pretrained(spec.path, **options)
            _replace_lm_head(model)
        else:
            model = AutoModelForTokenClassification.from_pretrained(spec.path, num_labels=1, **options)
            _start_scalar_head(model, spec, torch)
    except (OSError, ValueError) as error:
        raise UserError(f"{spec.path} does not load as a model: {error}") from error
    except KeyError as error:  # a family that looks its attention up in a table of its own
        raise UserError(
            f"{spec.path} cannot be trained here: its family takes no attention but its own ({error}). Take a model of "
            "another family, such as Llama or Qwen."
        ) from error
    model.config.use_cache = False
    return model.eval()


def scalar_head(model: Any) -> Any:
    """The linear layer that gives one number a token."""
    return model.score if hasattr(model, "score") else model.classifier


def _replace_lm_head(model: Any) -> None:
    import torch

    from quadriga.kernels.logprobs import linear_logprobs

    head = model.get_output_embeddings()
    head.request = None

    def forward(hidden: Any) -> Any:
        targets, temperature = head.request
        logprobs, entropy = linear_logprobs(
            hidden[0], head.weight, targets, bias=getattr(head, "bias", None), temperature=temperature
        )
        return torch.stack([logprobs, entropy], dim=-1)[None]

    head.forward = forward


def _start_scalar_head(model: Any, spec: ModelSpec, torch: Any) -> None:
    """Fill the head: the folder's weight under whichever name it has there, else a fresh one; then set the bias.

    Families differ in the name of the layer between token and sequence classification, so that what one class saved
    is not what the other reads. Fresh: Stiennon et al. 2020, appendix B.1, N(0, 1/(d+1)).
    """
    head = scalar_head(model)
    stored = stored_head(spec.path)
    with _gathered([head.weight] + ([head.bias] if head.bias is not None else [])), torch.no_grad():
        if stored is not None:
            head.weight.copy_(stored)
        else:
            generator = torch.Generator().manual_seed(spec.seed)
            std = spec.head_std if spec.head_std is not None else (head.weight.shape[1] + 1) ** -0.5
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
        if head.bias is not None:
            head.bias.fill_(spec.bias or 0.0)
    if head.bias is not None and spec.bias is None:
        head.bias.requires_grad_(False)


def _gathered(parameters: list[Any]) -> Any:
    """All ranks see, and rank 0's changes reach, whole tensors; nothing to do without ZeRO-3."""
    from contextlib import nullcontext

    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


def token_logprobs(engine: Any, model: Any, batch: dict[str, Any], temperature: float) -> tuple[Any, Any]:
    """(log-probs, entropies) [T] float32 of a packed batch, aligned with their tokens (0 at a sequence's first)."""
    import torch

    model.get_output_embeddings().request = (torch.roll(batch["token_ids"], -1), temperature)
    output = engine(**_inputs(batch)).logits[0]
    aligned = torch.where(batch["first"][:, None], 0.0, torch.roll(output, 1, dims=0))
    return aligned[:, 0], aligned[:, 1]


def token_scalars(engine: Any, batch: dict[str, Any]) -> Any:
    """One float32 number a position [T], the head's own output (not shifted)."""
    return engine(**_inputs(batch)).logits[0, :, 0].float()


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_ids": batch["token_ids"][None],
        "position_ids": batch["position_ids"][None],
        "cu_seqlens": batch["cu_seqlens"],
        "use_cache": False,
    }
