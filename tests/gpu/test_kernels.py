"""The kernels on CUDA against float64 on the CPU."""

import numpy as np
import pytest
import torch

from quadriga.kernels.attention import varlen_attention
from quadriga.kernels.logprobs import linear_logprobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_attention(heads: tuple[int, int], window: int | None) -> None:
    """fp32 within 1e-5, bf16 within 2e-2."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 17, 17, 64, 1]
    q, k, v = (torch.randn(sum(lengths), h, 64, generator=generator, dtype=torch.float64) for h in (*heads, heads[1]))
    borders = torch.tensor(np.r_[0, np.cumsum(lengths)], dtype=torch.int32)
    expected = varlen_attention(q, k, v, borders, window=window)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        result = varlen_attention(*(x.to("cuda", dtype) for x in (q, k, v)), borders, window=window)
        assert (result.cpu().double() - expected).abs().max() < tolerance


def test_logprobs() -> None:
    """Values, entropies and gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=generator, dtype=torch.float64)
    weight = torch.randn(1000, 64, generator=generator, dtype=torch.float64) * 0.3
    targets = torch.randint(0, 1000, (300,), generator=generator)
    expected = (hidden @ weight.T / 0.7).log_softmax(-1)
    h, w = (x.to("cuda", torch.float32).requires_grad_() for x in (hidden, weight))
    logprobs, entropy = linear_logprobs(h, w, targets.cuda(), temperature=0.7, chunk=64)
    logprobs.sum().backward()
    assert (logprobs.cpu().double() - expected.gather(1, targets[:, None])[:, 0]).abs().max() < 1e-4
    assert (entropy.cpu().double() + (expected.exp() * expected).sum(-1)).abs().max() < 1e-4
    slope = (torch.nn.functional.one_hot(targets, 1000) - expected.exp()) / 0.7
    assert h.grad is not None and (h.grad.cpu().double() - slope @ weight).abs().max() < 1e-4
    assert w.grad is not None and (w.grad.cpu().double() - slope.T @ hidden).abs().max() < 1e-3
