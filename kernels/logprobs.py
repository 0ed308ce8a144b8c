"""Log-probabilities of given tokens straight from hidden states, without the [T, V] logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """Change of a head's output x that some families make: scale * x, then softcap * tanh(x / softcap).

    softcap: None for no cap, as in most families. Gemma 2 introduced it (Gemma Team 2024, section 2).
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, x: Tensor) -> Tensor:
        """Return the logits, computed in place."""
        if self.scale != 1.0:
            x = x.mul_(self.scale)
        return x if self.softcap is None else x.div_(self.softcap).tanh_().mul_(self.softcap)

    def chain(self, gradient: Tensor, logits: Tensor, temperature: float) -> Tensor:
        """Return the gradient of the head's output, in place, from that of the transformed values.

        logits: the transformed values divided by the temperature.
        """
        if self.softcap is not None:
            gradient = gradient.mul_(1 - (logits * (temperature / self.softcap)).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int = 256,
    entropy_gradient: bool = False,
    transform: LogitTransform = LogitTransform(),
) -> tuple[Tensor, Tensor]:
    """Return the log-softmax of a language-model head at the target tokens, and the whole distribution's entropy.

    hidden: [T, D]; weight: [V, D]; bias: [V]; targets: [T] int64, the token that each row predicts.
    temperature: divides the logits, as it did when the tokens were sampled; must be positive.
    chunk: rows computed at a time; at most [chunk, V] logits exist at once. Backward computes them again.
    The matrix products run in the inputs' dtype (autocast's where it is on), everything after them in float32 or wider.
    entropy_gradient: whether the entropy carries a gradient too; without, a backward pass costs less.
    transform: what the model's family does to its logits, before the temperature.
    Returns (logprobs [T], entropy [T]) in nats, float32 (float64 for float64 inputs).
    Raises ValueError for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    return _LinearLogprobs.apply(hidden, weight, bias, targets, temperature, chunk, entropy_gradient, transform)


class _LinearLogprobs(torch.autograd.Function):
    """`linear_logprobs` for autograd.

    The weight is saved as the object that was passed, not as a copy: under ZeRO-3 its data is released after forward
    and gathered into the same object before backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        entropy_gradient: bool,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden, weight)
        head = weight.to(dtype), None if bias is None else bias.to(dtype), temperature, transform
        wide = torch.promote_types(dtype, torch.float32)
        normaliser, logprobs, entropy = (torch.empty(len(targets), dtype=wide, device=hidden.device) for _ in range(3))
        buffers = _Buffers(min(chunk, len(targets)), weight, dtype)
        for rows in _chunks(len(targets), chunk):
            logits = buffers.logits(hidden[rows].to(dtype), *head)
            largest = logits.amax(-1, keepdim=True)
            exponentials = torch.sub(logits, largest, out=buffers.second(len(logits))).exp_()
            total = exponentials.sum(-1)
            normaliser[rows] = total.log() + largest.squeeze(-1)
            logprobs[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1) - normaliser[rows]
            entropy[rows] = normaliser[rows] - exponentials.mul_(logits).sum(-1) / total
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy if entropy_gradient else None)
        ctx.temperature, ctx.chunk, ctx.dtype, ctx.transform = temperature, chunk, dtype, transform
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, with p the softmax and H its entropy.

        d logprob / d logits = (onehot(target) - p) / temperature; d H / d logits = -p (log p + H) / temperature.
        """
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        head = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype), ctx.temperature, ctx.transform
        wide = normaliser.dtype
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        # Sums over chunks are kept wide: thousands of bfloat16 additions would lose small terms.
        d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if for_weight else None
        d_bias = torch.zeros(bias.shape, dtype=wide, device=bias.device) if for_bias else None
        buffers = _Buffers(min(ctx.chunk, len(targets)), weight, ctx.dtype)
        for rows in _chunks(len(targets), ctx.chunk):
            chunk = hidden[rows].to(ctx.dtype)
            logits = buffers.logits(chunk, *head)
            logp = torch.sub(logits, normaliser[rows, None], out=buffers.second(len(logits)))
            d_entropy = None
            if entropy is not None:
                d_entropy = -logp.exp() * (logp + entropy[rows, None])
                d_entropy *= (entropy_grad[rows] / ctx.temperature)[:, None]
            d_logits = logp.exp_().neg_()
            d_logits.scatter_add_(-1, targets[rows, None], torch.ones_like(d_logits[:, :1]))
            d_logits *= (grad[rows] / ctx.temperature)[:, None]
            if d_entropy is not None:
                d_logits += d_entropy
            d_logits = ctx.transform.chain(d_logits, logits, ctx.temperature)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            d_logits = d_logits.to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (d_logits @ head[0]).to(hidden.dtype)
            if d_weight is None:
                continue
            if ctx.dtype == wide:
                d_weight.addmm_(d_logits.T, chunk)
            else:
                d_weight += d_logits.T @ chunk
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


class _Buffers:
    """Two wide matrices [rows, V] for every chunk in turn: fresh ones would leave the heap in pieces.

    A narrower product than float32 needs a third.
    """

    def __init__(self, rows: int, weight: Tensor, dtype: torch.dtype):
        wide = torch.promote_types(dtype, torch.float32)
        shape, device = (rows, weight.shape[0]), weight.device
        self._logits, self._second = (torch.empty(shape, dtype=wide, device=device) for _ in range(2))
        self._product = self._logits if dtype == wide else torch.empty(shape, dtype=dtype, device=device)

    def logits(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, transform: LogitTransform
    ) -> Tensor:
        """Return the logits [rows, V], transformed and divided by the temperature, in the first matrix."""
        rows = len(hidden)
        product, logits = self._product[:rows], self._logits[:rows]
        if bias is None:
            torch.mm(hidden, weight.T, out=product)
        else:
            torch.addmm(bias, hidden, weight.T, out=product)
        if product.dtype != logits.dtype:
            logits.copy_(product)
        logits = transform.apply(logits)
        return logits if temperature == 1.0 else logits.div_(temperature)

    def second(self, rows: int) -> Tensor:
        """Return this many rows of the second matrix."""
        return self._second[:rows]


def _chunks(total: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, total, chunk)]


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the type that `torch.nn.functional.linear` would compute in; autocast leaves float64 alone."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype
