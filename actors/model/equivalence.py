"""Check, when a model is loaded, that our packed forward agrees with the model's own on two short sequences.

Families differ around attention and head: some scale or cap the logits after the head, some carry a state from one
sequence of a packed row into the next. Anything that would make log-probs or scores silently wrong makes the two
forwards differ, and such a model is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quadriga.actors.model.heads import Head, token_logprobs, token_scalars
from quadriga.data.errors import UserError

LENGTHS = (7, 12)
"""Tokens of the two sequences; they differ, so that the packed path has to sort and divide them."""
FLOAT32_TOLERANCE = 1e-5
"""Largest allowed difference per unit of magnitude (at least 10): about a hundred roundings of 6e-8 each."""
BFLOAT16_MEAN_TOLERANCE = 0.05
"""Largest allowed mean difference: in bfloat16, logits are 1/16 or more apart."""


def check_packed_forward(engine: Any, model: Any, head: Head, path: str, device: Any) -> None:
    """Compare both forwards of a loaded model; all of its ranks must do so together.

    engine: callable that runs the model (a DeepSpeed engine, or the model itself). head: as the model was loaded.
    path: the model's folder, for messages. Raises UserError if the forwards differ or the packed one fails.
    """
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    sequences = [torch.arange(length) * 7919 % (vocabulary - 1) + 1 for length in LENGTHS]
    family = model.config.model_type
    with torch.no_grad():
        try:
            packed = _packed(torch, engine, model, head, sequences, device)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} cannot be trained here: its family ({family}) does not run on packed sequences. {error}"
            ) from error
        with _own_head_and_attention(model, head):
            unpacked = [_unpacked(engine, head, sequence.to(device)) for sequence in sequences]
    expected = torch.cat(unpacked)
    difference = (packed - expected).abs()
    if next(model.parameters()).dtype == torch.float32:
        size, limit = float(difference.max()), FLOAT32_TOLERANCE * max(10.0, float(expected.abs().max()))
    else:
        size, limit = float(difference.mean()), BFLOAT16_MEAN_TOLERANCE
    if not size <= limit:  # also true for nan
        output = "log-probs" if head == "logprobs" else "scores"
        raise UserError(
            f"{path} cannot be trained here: on two packed sequences the {output} of its family ({family}) are off by "
            f"{size:.2g} from those of the model's own forward ({limit:.2g} is allowed). The family changes its logits "
            "after the head, or lets one sequence see another; take a model of another family, such as Llama or Qwen."
        )


def _packed(torch: Any, engine: Any, model: Any, head: Head, sequences: list[Any], device: Any) -> Any:
    """Return the log-probs of all tokens but first ones, or the scalar at every token, from one packed row."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    borders = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    first = torch.cat([torch.arange(len(sequence)) == 0 for sequence in sequences]).to(device)
    batch = {
        "token_ids": torch.cat(sequences).to(device),
        "position_ids": torch.cat([torch.arange(len(sequence)) for sequence in sequences]).to(device),
        "cu_seqlens": borders,
        "first": first,
    }
    if head == "scalar":
        return token_scalars(engine, batch)
    return token_logprobs(engine, model, batch, 1.0)[0].float()[~first]


def _unpacked(engine: Any, head: Head, sequence: Any) -> Any:
    """Return the same for one sequence, from the model's own logits."""
    output = engine(input_ids=sequence[None], use_cache=False)
    if head == "scalar":
        return output[0].float()
    logits = output.logits[0].float()
    return logits[:-1].log_softmax(-1).gather(1, sequence[1:, None])[:, 0]


@contextmanager
def _own_head_and_attention(model: Any, head: Head) -> Iterator[None]:
    """Give a causal LM its own forward and head, and any model its own attention, while the context lasts."""
    replaced = [model, model.get_output_embeddings()] if head == "logprobs" else []
    ours = [module.__dict__.pop("forward") for module in replaced]
    base = model.base if head == "scalar" else model
    attention = model.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(attention)
        for module, forward in zip(replaced, ours, strict=True):
            module.forward = forward
