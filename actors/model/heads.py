"""Hugging Face models as packed, chunked per-token functions: log-probs from a causal LM, scalars from a head.

A causal LM's head computes `linear_logprobs`, so the logits of a row never exist all at once; this happens in the
forward of the head because ZeRO-3 gathers a parameter only for the forward of the module that owns it. Critic and
reward model are the same `ScalarModel`; they differ in the positions that are read and in their export.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quadriga.actors.model.folder import read_config
from quadriga.data.errors import UserError

if TYPE_CHECKING:
    from quadriga.kernels.logprobs import LogitTransform

Head = Literal["logprobs", "scalar"]


@dataclass(frozen=True)
class ModelSpec:
    """The model that a worker loads.

    path: folder with config.json and safetensors weights. head: log-probs of a causal LM, or one scalar per token.
    seed, head_std: a scalar head that the folder does not have is drawn from N(0, head_std^2), where None means a
    standard deviation of 1 / sqrt(hidden size + 1). bias: is added to the bias of the folder's scalar head, and the sum
    is trained; None keeps the folder's bias, or 0, fixed.
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
    from transformers import AutoModel, AutoModelForCausalLM

    from quadriga.actors.model.scalar import ScalarModel
    from quadriga.kernels.attention import register_varlen_attention

    read_config(spec.path)
    register_varlen_attention()
    auto = AutoModelForCausalLM if spec.head == "logprobs" else AutoModel
    try:
        model, report = auto.from_pretrained(
            spec.path,
            dtype=dtype,
            attn_implementation="quadriga_varlen",
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{spec.path} does not load as a model: {error}") from error
    except KeyError as error:  # from a family with a fixed table of attentions
        raise UserError(
            f"{spec.path} cannot be trained here: its family takes no attention but its own ({error}). Take a model of "
            "another family, such as Llama or Qwen."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{spec.path} lacks {len(missing)} tensors of its family, for example {missing[0]}: they would be random. "
            "Is the folder complete, and is it a causal language model?"
        )
    model.config.use_cache = False
    if spec.head == "logprobs":
        _compute_logprobs(model)
        return model.eval()
    return ScalarModel(model, spec.seed, spec.bias, spec.head_std).eval()


def logit_transform(config: Any) -> "LogitTransform":
    """Return what a family does to the logits after its head, from the fields of its config.

    A family with a change under another name is refused when its packed forward is compared with its own.
    """
    from quadriga.kernels.logprobs import LogitTransform

    text = config.get_text_config()
    scale = 1.0
    if divisor := getattr(text, "logits_scaling", None):  # Granite
        scale /= divisor
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        scale *= getattr(text, name, None) or 1.0
    return LogitTransform(scale, getattr(text, "final_logit_softcapping", None))


def _compute_logprobs(model: Any) -> None:
    """Have a causal LM return log-probs and entropies [1, T, 2] for its head's `request`.

    A request is (target tokens, temperature, whether the entropies carry a gradient). The model's own forward, which
    may change the logits after the head, is replaced by decoder and head. The decoder, not the model, has the sequence
    of modules that ZeRO-3 gathers, and the head's own forward is the place where its parameters are whole.
    """
    import torch

    from quadriga.kernels.logprobs import linear_logprobs

    head, transform = model.get_output_embeddings(), logit_transform(model.config)
    head.request = None

    def head_forward(hidden: Any) -> Any:
        targets, temperature, entropy_gradient = head.request
        logprobs, entropy = linear_logprobs(
            hidden[0],
            head.weight,
            targets,
            bias=getattr(head, "bias", None),
            temperature=temperature,
            entropy_gradient=entropy_gradient,
            transform=transform,
        )
        return torch.stack([logprobs, entropy], dim=-1)[None]

    def forward(**inputs: Any) -> Any:
        return head(model.base_model(**inputs)[0])

    head.forward = head_forward
    model.forward = forward


def token_logprobs(
    engine: Any, model: Any, batch: dict[str, Any], temperature: float, entropy_gradient: bool = False
) -> tuple[Any, Any]:
    """Return (log-probs, entropies), [T] float32 in nats, aligned with a packed batch's tokens; 0 at first tokens."""
    import torch

    model.get_output_embeddings().request = (torch.roll(batch["token_ids"], -1), temperature, entropy_gradient)
    output = engine(**_inputs(batch))[0]
    aligned = torch.where(batch["first"][:, None], 0.0, torch.roll(output, 1, dims=0))
    return aligned[:, 0], aligned[:, 1]


def token_scalars(engine: Any, batch: dict[str, Any]) -> Any:
    """Return the head's output per position, [T] float32, not shifted."""
    return engine(**_inputs(batch))[0].float()


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model's forward for a packed batch."""
    return {
        "input_ids": batch["token_ids"][None],
        "position_ids": batch["position_ids"][None],
        "cu_seqlens": batch["cu_seqlens"],
        "use_cache": False,
    }
