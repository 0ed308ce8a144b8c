"""The chunked head against its definition: values, gradients, types and memory.

"Detail N" is a section of "The N Implementation Details of RLHF with PPO" (Huang et al. 2024).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quadriga.kernels.logprobs import LogitTransform, linear_logprobs


def head(rows: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [rows, 8], weight [11, 8], bias [11] (all require gradients) and targets [rows]."""
    rng = torch.Generator().manual_seed(seed)
    shapes = ((rows, 8), (11, 8), (11,))
    hidden, weight, bias = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes)
    targets = torch.randint(0, 11, (rows,), generator=rng)
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets


def definition(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    table = torch.log_softmax(logits / temperature, -1)
    return table[torch.arange(len(targets)), targets], -(table.exp() * table).sum(-1)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 9), chunk=st.integers(1, 10), temperature=st.sampled_from([0.5, 1.0, 2.0]), biased=st.booleans()
)
def test_equals_the_definition(rows: int, chunk: int, temperature: float, biased: bool) -> None:
    """Detail 4: logits are divided by the temperature. Values and gradients, whatever the chunk."""
    hidden, weight, bias, targets = head(rows)
    inputs = [hidden, weight, bias] if biased else [hidden, weight]
    upstream = torch.linspace(-1, 2, rows, dtype=torch.float64)
    found = linear_logprobs(hidden, weight, targets, bias if biased else None, temperature, chunk)
    expected = definition(hidden, weight, targets, bias if biased else None, temperature)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(found[0] @ upstream, inputs)
    for one, other in zip(gradients, torch.autograd.grad(expected[0] @ upstream, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, bias, targets = head(5)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logprobs(h, w, targets, b, 0.7, 2)[0], (hidden, weight, bias), check_undefined_grad=False
    )


@pytest.mark.parametrize("wanted", range(3))
def test_gradients_only_where_wanted(wanted: int) -> None:
    *inputs, targets = head(4)
    full = torch.autograd.grad(linear_logprobs(*inputs[:2], targets, inputs[2])[0].sum(), inputs)
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index == wanted)
    (alone,) = torch.autograd.grad(linear_logprobs(*inputs[:2], targets, inputs[2])[0].sum(), [inputs[wanted]])
    torch.testing.assert_close(alone, full[wanted])


def test_entropy_carries_no_gradient() -> None:
    hidden, weight, _, targets = head(4)
    logprobs, entropy = linear_logprobs(hidden, weight, targets)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_no_graph_without_need() -> None:
    hidden, weight, _, targets = head(4)
    with torch.no_grad():
        assert linear_logprobs(hidden, weight, targets)[0].grad_fn is None
    assert linear_logprobs(hidden.detach(), weight.detach(), targets)[0].grad_fn is None


def test_bfloat16_inputs_give_float32_log_softmax() -> None:
    """Detail 20: only the matrix product is rounded to bfloat16; normalising is done in float32."""
    hidden, weight, _, targets = head(64, torch.bfloat16)
    logprobs, entropy = linear_logprobs(hidden, weight, targets)
    assert logprobs.dtype == entropy.dtype == torch.float32
    rounded = (hidden @ weight.T).double()
    exact = torch.log_softmax(rounded, -1)[torch.arange(64), targets]
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-6)
    gradients = torch.autograd.grad(logprobs.sum(), [hidden, weight])
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = torch.autograd.grad(definition(*wide, targets, None, 1.0)[0].sum(), wide)
    for one, other in zip(gradients, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.05)


def test_autocast_keeps_the_gradients_dtype() -> None:
    hidden, weight, bias, targets = head(6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = linear_logprobs(hidden, weight, targets, bias)
    logits = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1)[torch.arange(6), targets])
    for gradient in torch.autograd.grad(logprobs.sum(), [hidden, weight, bias]):
        assert gradient.dtype == torch.float32


def test_weight_may_be_released_until_backward() -> None:
    """As under ZeRO-3: the data is released after forward and gathered into the same object for backward."""
    hidden, weight, _, targets = head(4)
    weight = torch.nn.Parameter(weight.detach())
    expected = torch.autograd.grad(definition(hidden, weight, targets, None, 1.0)[0].sum(), [hidden, weight])
    logprobs, _ = linear_logprobs(hidden, weight, targets)
    whole, weight.data = weight.data, torch.empty(0, dtype=torch.float64)
    weight.data = whole
    for one, other in zip(torch.autograd.grad(logprobs.sum(), [hidden, weight]), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row's logits are made twice, forward and backward, and never more than a chunk of rows at once."""
    hidden, weight, _, targets = head(10)
    made: list[tuple[int, ...]] = []
    original = torch.mm

    def product(*args: Tensor, out: Tensor) -> Tensor:
        made.append(tuple(out.shape))
        return original(*args, out=out)

    monkeypatch.setattr(torch, "mm", product)
    linear_logprobs(hidden, weight, targets, chunk=4)[0].sum().backward()
    assert made == [(4, 11), (4, 11), (2, 11)] * 2


def test_temperature_must_be_positive() -> None:
    hidden, weight, _, targets = head(2)
    with pytest.raises(ValueError, match="temperature"):
        linear_logprobs(hidden, weight, targets, temperature=0.0)


@pytest.mark.parametrize("transform", [LogitTransform(0.25), LogitTransform(1.0, 2.0), LogitTransform(0.5, 1.5)])
def test_transformed_logits_equal_the_definition(transform: LogitTransform) -> None:
    """scale * x, then softcap * tanh(x / softcap), then the temperature; gradients of both outputs by autograd."""
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((7, 5), (11, 5), (11,))]
    targets = torch.randint(11, (7,), generator=rng)
    for x in inputs:
        x.requires_grad_()
    hidden, weight, bias = inputs
    logits = (hidden @ weight.T + bias) * transform.scale
    if transform.softcap:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    expected = (logits / 0.7).log_softmax(-1)
    entropies = -(expected.exp() * expected).sum(-1)
    expected = expected.gather(1, targets[:, None])[:, 0]
    found, entropy = linear_logprobs(
        hidden, weight, targets, bias, 0.7, chunk=3, entropy_gradient=True, transform=transform
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy, entropies)
    upstream = torch.randn(2, 7, generator=rng, dtype=torch.float64)
    ours = torch.autograd.grad((found * upstream[0] + entropy * upstream[1]).sum(), inputs)
    theirs = torch.autograd.grad((expected * upstream[0] + entropies * upstream[1]).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
