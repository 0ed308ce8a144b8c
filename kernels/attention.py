"""Causal attention over packed sequences, and its registration as a Hugging Face attention implementation.

Sequences of equal length are computed together as one batch of `scaled_dot_product_attention`, so nothing is padded,
no mask is needed and no sequence can see another. This works on every device that torch runs on. Sequences longer than
a sliding window, and scores with a soft cap, are computed in blocks of queries that need few keys or little memory.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "quadriga_varlen"

# Arguments that some models pass to their attention: ignoring one would change the result.
_UNSUPPORTED = ("s_aux", "position_bias", "head_mask")

BLOCK = 512
"""Queries that are computed together where a window or a cap needs a mask."""


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Compute causal softmax attention inside each sequence of a packed row.

    q: [T, H, D]; k: [T, Hkv, D]; v: [T, Hkv, Dv], where Hkv divides H (grouped-query attention).
    cu_seqlens: [N+1] integer borders, preferably on the CPU: their values are needed there, and reading them from
    another device waits for it.
    scale: factor of q·k; None means 1/sqrt(D). dropout: probability on the attention weights.
    window: number of last tokens, its own included, that a token sees; None for all of its sequence.
    softcap: c of c * tanh(score / c), applied to the scaled scores; None for none.
    Returns [T, H, Dv]. Raises ValueError if the borders do not span T.
    """
    borders = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(borders))
    if borders[:1] != [0] or borders[-1] != q.shape[0] or min(lengths, default=0) < 0:
        raise ValueError(
            f"cu_seqlens must rise from 0 to the {q.shape[0]} tokens given, not {borders[:1]} to {borders[-1:]}"
        )
    layout = _layout(lengths, q.device)
    if layout.order is not None:
        q, k, v = (_Permute.apply(x, layout.order, layout.inverse) for x in (q, k, v))
    outputs = []
    start = 0
    for count, length in layout.groups:
        rows = slice(start, start := start + count * length)
        query, key, value = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        if softcap is not None or (window is not None and length > window):
            out = _in_blocks(query, key, value, scale, dropout, window or length, softcap)
        else:
            out = scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    if not outputs:
        return q.new_zeros(0, q.shape[1], v.shape[2]) + (q.sum() + k.sum() + v.sum())
    out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return out if layout.order is None else _Permute.apply(out, layout.inverse, layout.order)


def _in_blocks(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, window: int, softcap: float | None
) -> Tensor:
    """Compute causal attention of whole sequences, [n, H, L, D], with a window and a cap; return [n, H, L, Dv].

    Each block of queries takes only the keys that its window reaches.
    """
    length = query.shape[2]
    place = torch.arange(length, device=query.device)
    outputs = []
    for start in range(0, length, BLOCK):
        stop, first = min(start + BLOCK, length), max(0, start - window + 1)
        distance = place[start:stop, None] - place[None, first:stop]
        visible = (distance >= 0) & (distance < window)
        block = query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop], visible
        if softcap is None:
            grouped = query.shape[1] != key.shape[1]
            out = scaled_dot_product_attention(
                *block[:3], attn_mask=visible, dropout_p=dropout, scale=scale, enable_gqa=grouped
            )
        elif torch.is_grad_enabled():  # recomputed in backward: a block's scores are larger than its output
            out = checkpoint(_capped, *block, scale, dropout, softcap, use_reentrant=False)
        else:
            out = _capped(*block, scale, dropout, softcap)
        outputs.append(out)
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scale: float | None,
    dropout: float,
    softcap: float,
) -> Tensor:
    """Compute attention with capped scores (Gemma Team 2024, section 2), the softmax in float32 or wider."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / softcap) * softcap
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1, dtype=wide).to(value.dtype)
    return torch.dropout(weights, dropout, train=dropout > 0) @ value


def register_varlen_attention() -> None:
    """Make `attn_implementation="quadriga_varlen"` known to transformers; repeated calls have no further effect.

    A model is then called as `model(input_ids=[1, T], position_ids=[1, T], cu_seqlens=[N+1], use_cache=False)`.
    """
    AttentionInterface.register(NAME, _attention_forward)
    AttentionMaskInterface.register(NAME, _no_mask)


@dataclass(frozen=True)
class _Layout:
    """Batches of sequences of equal length, and the token order that makes each batch contiguous.

    groups: (sequences, length) per batch. order, inverse: permutations of [T], each the other's inverse; None if the
    tokens are in this order already.
    """

    groups: list[tuple[int, int]]
    order: Tensor | None
    inverse: Tensor | None


@lru_cache(maxsize=16)
def _layout(lengths: tuple[int, ...], device: torch.device) -> _Layout:
    """Return the layout of these lengths, cached: all layers share it, and so does recomputation in backward."""
    by_length: dict[int, list[int]] = {}
    start = 0
    for length in lengths:
        if length:
            by_length.setdefault(length, []).append(start)
        start += length
    groups = [(len(starts), length) for length, starts in by_length.items()]
    # A cached tensor that was made in inference mode could not be used in training.
    with torch.inference_mode(False):
        parts = [
            (torch.tensor(starts)[:, None] + torch.arange(length)).flatten() for length, starts in by_length.items()
        ]
        order = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
        if torch.equal(order, torch.arange(len(order))):
            return _Layout(groups, None, None)
        return _Layout(groups, order.to(device), torch.argsort(order).to(device))


class _Permute(torch.autograd.Function):
    """Rows in another order. The gradient is a gather too; that of plain indexing would be a slower scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def _attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute varlen attention in Hugging Face's convention.

    query: [1, H, T, D]; key, value: [1, Hkv, T, D]. Returns ([1, T, H, D], None).
    Raises ValueError where the model asks for anything but causal attention inside each sequence.
    """
    family = type(module).__name__
    if cu_seqlens is None:
        raise ValueError(
            f"{family} got no cu_seqlens: either the model was called without them, or its family does not pass "
            "keyword arguments on to its attention. Sequences would see each other; use another model family."
        )
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(f"{family}: packed attention takes one row, no attention mask and no cache (use_cache=False)")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError(f"{family}: packed attention is causal, this layer is not")
    if unsupported := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise ValueError(
            f"{family}: packed attention does not support {', '.join(unsupported)}; use another model family"
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen_attention(q, k, v, cu_seqlens, scaling, dropout, sliding_window, softcap).unsqueeze(0), None


def _no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Return no mask, since packed attention needs none. Raises ValueError for a mask, which would be ignored."""
    if attention_mask is not None:
        raise ValueError("packed attention takes no attention_mask: sequences are separated by cu_seqlens")
