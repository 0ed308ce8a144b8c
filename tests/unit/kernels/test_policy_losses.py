"""The surrogates and the parts beside them, against float64 loops over ragged sequences."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quadriga.kernels.logprobs import linear_logprobs
from quadriga.kernels.losses.base import Loss
from quadriga.kernels.losses.policy import Cispo, PolicyClip
from quadriga.kernels.losses.regularisers import EntropyBonus, ReferenceKL

LOSSES = [
    PolicyClip(0.2),
    PolicyClip(0.2, clip_high=0.5),
    PolicyClip(0.2, dual_clip=1.5),
    PolicyClip(0.1, clip_high=0.3, dual_clip=2.0, ratio="sequence"),
    PolicyClip(0.2, ratio="sequence"),
    Cispo(),
    Cispo(clip_low=0.3, clip_high=0.1),
    ReferenceKL("k1"),
    ReferenceKL("k2"),
    ReferenceKL("k3"),
]


def by_hand(loss: Any, batch: list[dict[str, list[float]]]) -> tuple[float, list[list[float]]]:
    """The loss and its derivative by each log-prob, token by token in Python floats."""
    total, gradients = 0.0, []
    for sequence in batch:
        w, new, n = sequence["weights"], sequence["logprobs"], len(sequence["weights"])
        learned = [t for t in range(n) if w[t] != 0]
        gradient = [0.0] * n
        if isinstance(loss, ReferenceKL):
            for t in learned:
                x = new[t] - sequence["ref_logprobs"][t]
                value = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[loss.estimator]
                slope = {"k1": 1.0, "k2": x, "k3": 1 - math.exp(-x)}[loss.estimator]
                total, gradient[t] = total + w[t] * value, w[t] * slope
        elif isinstance(loss, Cispo):
            for t in learned:
                low = 0.0 if loss.clip_low is None else 1 - loss.clip_low
                r = min(max(math.exp(new[t] - sequence["old_logprobs"][t]), low), 1 + loss.clip_high)
                a = sequence["advantages"][t]
                total, gradient[t] = total - w[t] * r * a * new[t], -w[t] * r * a
        else:
            x = {t: new[t] - sequence["old_logprobs"][t] for t in learned}
            if loss.ratio == "sequence":
                x = dict.fromkeys(learned, sum(x.values()) / max(1, len(x)))
            high = 1 + (loss.clip if loss.clip_high is None else loss.clip_high)
            for t in learned:
                a, r = sequence["advantages"][t], math.exp(x[t])
                objective, slope = r * a, r * a
                if min(max(r, 1 - loss.clip), high) * a < objective:
                    objective, slope = min(max(r, 1 - loss.clip), high) * a, 0.0
                if loss.dual_clip is not None and a < 0 and loss.dual_clip * a > objective:
                    objective, slope = loss.dual_clip * a, 0.0
                total -= w[t] * objective
                if loss.ratio == "token":
                    gradient[t] -= w[t] * slope
                else:
                    for other in learned:
                        gradient[other] -= w[t] * slope / len(learned)
        gradients.append(gradient)
    return total, gradients


def packed(batch: list[dict[str, list[float]]]) -> tuple[dict[str, Tensor], Tensor]:
    """The fields of sequences laid end to end, and their log-probs, which want a gradient."""
    fields = {name: torch.tensor([x for s in batch for x in s[name]], dtype=torch.float64) for name in batch[0]}
    borders = np.cumsum([0] + [len(s["weights"]) for s in batch])
    logprobs = fields.pop("logprobs").float().requires_grad_()
    fields = {name: values.float() for name, values in fields.items()}
    return fields | {"cu_seqlens": torch.tensor(borders, dtype=torch.int32)}, logprobs


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_losses_and_gradients_by_hand(loss: Loss, seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    names = ("logprobs", "old_logprobs", "ref_logprobs", "advantages")
    draws = [{name: rng.normal(0, 0.7, n).astype(np.float32).tolist() for name in names} for n in lengths]
    batch = [draw | {"weights": rng.choice([0.0, 1.0, 0.25], len(draw["logprobs"])).tolist()} for draw in draws]
    fields, logprobs = packed(batch)
    total, stats = loss({"logprobs": logprobs}, fields)
    total.backward()
    expected, gradients = by_hand(loss, batch)
    # Float32: at most 30 terms, ratios below e^5, each rounded to 6e-8 of itself.
    scale = 1 + sum(abs(w) for s in batch for w in s["weights"]) * 50
    assert total.item() == pytest.approx(expected, abs=1e-6 * scale)
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad.numpy(), [g for s in gradients for g in s], rtol=2e-5, atol=2e-6)
    assert stats["loss"].item() == total.item()


def test_a_sequence_ratio_is_that_of_its_own_sequence() -> None:
    batch = [
        {"logprobs": [0.2, 0.4], "old_logprobs": [0.0, 0.0], "advantages": [1.0, 1.0], "weights": [1.0, 1.0]},
        {"logprobs": [-0.1, 9.0], "old_logprobs": [0.0, 0.0], "advantages": [1.0, 1.0], "weights": [1.0, 0.0]},
    ]
    fields, logprobs = packed(batch)
    _, stats = PolicyClip(10.0, ratio="sequence")({"logprobs": logprobs}, fields)
    assert stats["ratio"].item() == pytest.approx(2 * math.exp(0.3) + math.exp(-0.1), rel=1e-6)
    assert stats["log_ratio_max"].item() == pytest.approx(0.4), "the check of the first minibatch sees tokens"


def test_entropy_bonus_has_the_gradient_of_the_entropy() -> None:
    """Through `linear_logprobs`, chunk by chunk, against autograd over whole logits in float64."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    bias, targets = torch.randn(11, dtype=torch.float64), torch.randint(11, (7,))
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logprobs, entropy = linear_logprobs(*inputs[:2], targets, inputs[2], 0.7, chunk=3, entropy_gradient=True)
    # Both outputs at once: their gradients add up.
    (-(entropy * weights).sum() + 0.3 * (logprobs * weights).sum()).backward()
    wanted = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logp = ((wanted[0] @ wanted[1].T + wanted[2]) / 0.7).log_softmax(-1)
    exact = -(logp.exp() * logp).sum(-1)
    chosen = logp.gather(1, targets[:, None])[:, 0]
    (-(exact * weights).sum() + 0.3 * (chosen * weights).sum()).backward()
    for ours, theirs in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    output = {"entropy": entropy.detach().float().requires_grad_()}
    total, _ = EntropyBonus()(output, {"weights": weights.float()})
    total.backward()
    assert total.item() == pytest.approx(-(exact * weights).sum().item(), rel=1e-6)
    assert output["entropy"].grad is not None
    assert output["entropy"].grad.tolist() == (-weights).tolist()


def test_without_its_own_gradient_the_entropy_has_none() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    _, entropy = linear_logprobs(hidden, torch.randn(6, 4), torch.tensor([0, 1, 2]))
    assert not entropy.requires_grad


@pytest.mark.parametrize("loss", [*LOSSES, EntropyBonus()], ids=repr)
def test_a_filler_is_zero_with_a_gradient(loss: Loss) -> None:
    fields: dict[str, Tensor] = {name: torch.zeros(2) for name in loss.fields}
    x = torch.ones(2, requires_grad=True)
    total, _ = loss({"logprobs": x, "entropy": x}, fields | {"cu_seqlens": torch.tensor([0, 2])})
    total.backward()
    assert total.item() == 0
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0]


@pytest.mark.parametrize("loss", [PolicyClip(0.2), PolicyClip(0.2, ratio="sequence"), Cispo()])
def test_unmoved_weights_have_a_ratio_of_one(loss: PolicyClip | Cispo) -> None:
    """Whatever rounding the old log-probs have: the loss is the policy gradient, the statistics show the rounding."""
    batch = [{"logprobs": [-1.0, -2.0], "old_logprobs": [-1.4, -1.9], "advantages": [2.0, -3.0], "weights": [1.0, 1.0]}]
    fields, logprobs = packed(batch)
    logprobs.requires_grad_()
    total, stats = loss.of_unmoved_weights()({"logprobs": logprobs}, fields)
    total.backward()
    mean = [0.5, 0.5]  # of -A, as each token of a sequence has a half of its ratio
    expected = mean if loss == PolicyClip(0.2, ratio="sequence") else [-2.0, 3.0]
    torch.testing.assert_close(logprobs.grad, torch.tensor(expected))
    assert stats["ratio"] == 2
    assert stats["clip_fraction"] == 0
    assert stats["log_ratio"].item() == pytest.approx(0.5)
    assert stats["log_ratio_max"].item() == pytest.approx(0.4)
