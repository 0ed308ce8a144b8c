"""Hugging Face models as packed, chunked per-token functions: log-probs from a causal LM, scalars from a head.

A causal LM's head computes `linear_logprobs`, so the logits of a row never exist all at once; this happens in the
forward of the head because ZeRO-3 gathers a parameter only for the forward of the module that owns it. Critic and
reward model are the same token-classification model with one label; they differ in the positions that are read and in
their export.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quadriga.actors.model.folder import read_config, stored_head
from quadriga.data.errors import UserError

Head = Literal["logprobs", "scalar"]


@dataclass(frozen=True)
class ModelSpec:
    """The model that a worker loads.

    path: folder with config.json and safetensors weights. head: log-probs of a causal LM, or one scalar per token.
    seed, head_std: a scalar head that the folder does not have is drawn from N(0, head_std^2), where None means a
    standard deviation of 1 / sqrt(hidden size + 1). bias: initial bias of the scalar head; None fixes it at 0.
    """

    path: str
    head: Head
    seed: int = 0
    bias: float | None = None
    head_std: float | None = None


def scalar_spec(path: str, seed: int, bias: float | None, head_std: float | None = None) -> ModelSpec:
    """Return the spec of a critic or reward model."""
    return ModelSpec(path, "scalar", seed=seed, bias=bias, head_std=head_std)


def load_model(spec: ModelSpec, dtype: Any) -> Any:
    """Load the model of a spec, ready for packed batches and in eval mode: dropout is off in every stage.

    Raises UserError for a folder that is not a model, or a family that cannot be trained here.
    """
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
            _initialise_scalar_head(model, spec, torch)
    except (OSError, ValueError) as error:
        raise UserError(f"{spec.path} does not load as a model: {error}") from error
    except KeyError as error:  # from a family with a fixed table of attentions
        raise UserError(
            f"{spec.path} cannot be trained here: its family takes no attention but its own ({error}). Take a model of "
            "another family, such as Llama or Qwen."
        ) from error
    model.config.use_cache = False
    return model.eval()


def scalar_head(model: Any) -> Any:
    """Return the linear layer that gives one number per token."""
    return model.score if hasattr(model, "score") else model.classifier


def _replace_lm_head(model: Any) -> None:
    """Have the head return log-probs and entropies [1, T, 2] for its `request`.

    A request is (target tokens, temperature, whether the entropies carry a gradient).
    """
    import torch

    from quadriga.kernels.logprobs import linear_logprobs

    head = model.get_output_embeddings()
    head.request = None

    def forward(hidden: Any) -> Any:
        targets, temperature, entropy_gradient = head.request
        logprobs, entropy = linear_logprobs(
            hidden[0],
            head.weight,
            targets,
            bias=getattr(head, "bias", None),
            temperature=temperature,
            entropy_gradient=entropy_gradient,
        )
        return torch.stack([logprobs, entropy], dim=-1)[None]

    head.forward = forward


def _initialise_scalar_head(model: Any, spec: ModelSpec, torch: Any) -> None:
    """Set the head's weight, to the folder's under any of its names or else at random, and its bias.

    Some families name this layer differently in token and sequence classification, so one class does not read what the
    other saved. The random weight is N(0, 1/(d+1)) by default (Stiennon et al. 2020, appendix B.1).
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
    """Return a context with whole tensors on all ranks, where rank 0's changes are kept; without ZeRO-3, nothing."""
    from contextlib import nullcontext

    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


def token_logprobs(
    engine: Any, model: Any, batch: dict[str, Any], temperature: float, entropy_gradient: bool = False
) -> tuple[Any, Any]:
    """Return (log-probs, entropies), [T] float32 in nats, aligned with a packed batch's tokens; 0 at first tokens."""
    import torch

    model.get_output_embeddings().request = (torch.roll(batch["token_ids"], -1), temperature, entropy_gradient)
    output = engine(**_inputs(batch)).logits[0]
    aligned = torch.where(batch["first"][:, None], 0.0, torch.roll(output, 1, dims=0))
    return aligned[:, 0], aligned[:, 1]


def token_scalars(engine: Any, batch: dict[str, Any]) -> Any:
    """Return the head's output per position, [T] float32, not shifted."""
    return engine(**_inputs(batch)).logits[0, :, 0].float()


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model's forward for a packed batch."""
    return {
        "input_ids": batch["token_ids"][None],
        "position_ids": batch["position_ids"][None],
        "cu_seqlens": batch["cu_seqlens"],
        "use_cache": False,
    }
