"""Losses by hand, and properties that hold for all of them.

"Detail N" is a section of "The N Implementation Details of RLHF with PPO" (Huang et al. 2024).
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quadriga.kernels.losses.base import Loss
from quadriga.kernels.losses.likelihood import NegativeLogLikelihood
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.kernels.losses.ranking import Ranking
from quadriga.kernels.losses.value import ValueClip

T = torch.tensor
LOSSES: list[Loss] = [NegativeLogLikelihood(), PolicyClip(), ValueClip(), ValueClip(None), Ranking()]


def test_nll() -> None:
    logprobs = T([0.0, -1.0, -2.0, -4.0], requires_grad=True)
    fields = {"weights": T([0, 1, 0, 1])}
    loss, stats = NegativeLogLikelihood()({"logprobs": logprobs, "entropy": T([9.0, 1.0, 9.0, 2.0])}, fields)
    loss.backward()
    assert loss.item() == stats["loss"].item() == 5.0
    assert stats["entropy"].item() == 3.0
    assert logprobs.grad.tolist() == [0, -1, 0, -1]


def test_policy_clip_by_hand() -> None:
    """Detail 14: ratios 1.5 and 0.5 with advantages of both signs and clip 0.2; the fifth token is not in the mask."""
    logprobs = T([math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5), 3.0], requires_grad=True)
    fields = {
        "old_logprobs": torch.zeros(5),
        "advantages": T([2.0, -2.0, 2.0, -2.0, 5.0]),
        "weights": T([1, 1, 1, 1, 0]),
    }
    loss, stats = PolicyClip(0.2)({"logprobs": logprobs}, fields)
    loss.backward()
    # min(r A, clip(r) A): 1.2*2, 1.5*-2, 0.5*2, 0.8*-2
    assert loss.item() == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6), abs=1e-6)
    # d/dlogp of -r A where not clipped away.
    torch.testing.assert_close(logprobs.grad, T([0.0, 3.0, -1.0, 0.0, 0.0]))
    assert stats["clip_fraction"].item() == 2
    expected_kl = 2 * (1.5 - 1 - math.log(1.5)) + 2 * (0.5 - 1 - math.log(0.5))
    assert stats["approx_kl"].item() == pytest.approx(expected_kl, rel=1e-6)
    assert stats["ratio"].item() == pytest.approx(4.0)
    assert (stats["ratio_min"].item(), stats["ratio_max"].item()) == pytest.approx((0.5, 1.5))
    assert stats["log_ratio_max"].item() == pytest.approx(math.log(2))
    assert not any(value.requires_grad for value in stats.values())


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_policy_clip_on_policy_is_the_policy_gradient(advantages: list[float]) -> None:
    """Detail 16: where old and new agree the ratio is exactly 1, nothing is clipped, and the gradient is -A."""
    logprobs = torch.linspace(-3, -1, len(advantages), requires_grad=True)
    fields = {"old_logprobs": logprobs.detach(), "advantages": T(advantages), "weights": torch.ones(len(advantages))}
    loss, stats = PolicyClip(0.2)({"logprobs": logprobs}, fields)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -T(advantages))
    assert stats["ratio_min"] == stats["ratio_max"] == 1
    assert stats["log_ratio_max"] == 0
    assert stats["clip_fraction"] == 0
    assert stats["approx_kl"] == 0


def test_value_clip_by_hand() -> None:
    """Detail 14: the larger of both squared errors, times 0.5."""
    values = T([1.0, 1.0, -1.0], requires_grad=True)
    fields = {"old_values": T([0.5, 0.5, 0.0]), "returns": T([2.0, 0.0, 0.0]), "weights": T([1, 1, 0])}
    loss, stats = ValueClip(0.2)({"values": values}, fields)
    loss.backward()
    # First: (1-2)^2 = 1 against (0.7-2)^2 = 1.69. Second: 1 against (0.7)^2.
    assert loss.item() == pytest.approx(0.5 * (1.69 + 1.0))
    torch.testing.assert_close(values.grad, T([0.0, 1.0, 0.0]))
    assert stats["clip_fraction"].item() == 1
    assert stats["squared_error"].item() == 2.0


def test_value_loss_without_clip_is_the_squared_error() -> None:
    fields = {"old_values": T([0.5, 0.5, 0.0]), "returns": T([2.0, 0.0, 0.0]), "weights": T([1, 1, 0])}
    loss, _ = ValueClip(None)({"values": T([1.0, 1.0, -1.0])}, fields)
    assert loss.item() == pytest.approx(1.0)


def test_numbers_outside_the_mask_do_not_matter() -> None:
    """Detail 26: metrics and losses see masked tokens only, even next to infinities."""
    mask, bad = T([1, 0]), T([-1.0, math.inf])
    for loss, output in ((NegativeLogLikelihood(), "logprobs"), (PolicyClip(), "logprobs"), (ValueClip(), "values")):
        x = T([-1.0, -math.inf], requires_grad=True)
        fields = {name: bad for name in loss.fields} | {"weights": mask}
        total, stats = loss({output: x, "entropy": bad}, fields)
        total.backward()
        assert all(torch.isfinite(value) for value in (total, *stats.values(), *x.grad))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_filler_has_weight_zero_and_a_gradient(loss: Loss) -> None:
    """A micro-batch without a unit adds 0 to every sum, and its backward runs, as its rank's peers need."""
    x = torch.ones(2, requires_grad=True)
    fields = {field: torch.zeros(2) for field in loss.fields}
    total, stats = loss({loss.head: x}, fields)
    total.backward()
    assert total.item() == 0
    assert x.grad.tolist() == [0, 0]
    assert all(value == 0 for key, value in stats.items() if not key.endswith(("_min", "_max")))


@settings(deadline=None)
@given(st.data())
def test_sums_do_not_depend_on_the_cut(data: st.DataObject) -> None:
    """Detail 15: loss and statistics add up over micro-batches, wherever they are cut."""
    size = data.draw(st.integers(1, 12))
    cut = data.draw(st.integers(0, size))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def draw() -> Tensor:
        return torch.randn(size, generator=rng)

    for loss in (NegativeLogLikelihood(), PolicyClip(0.1), ValueClip(0.1)):
        output = {loss.head: draw()}
        fields = {name: draw() for name in loss.fields} | {"weights": (draw() > 0).long()}

        def part(rows: slice, loss=loss, output=output, fields=fields):  # type: ignore[no-untyped-def]
            mine = {k: v[rows] for k, v in fields.items()}
            total, stats = loss({k: v[rows] for k, v in output.items()}, mine)
            return stats | {"total": total}

        whole, first, second = part(slice(None)), part(slice(cut)), part(slice(cut, None))
        for key, value in whole.items():
            merge = torch.maximum if key.endswith("_max") else torch.minimum if key.endswith("_min") else torch.add
            torch.testing.assert_close(merge(first[key], second[key]), value, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_summed_in_float32() -> None:
    """Detail 20: 4,096 times 1 is not representable step by step in bfloat16."""
    loss, _ = NegativeLogLikelihood()(
        {"logprobs": -torch.ones(4096, dtype=torch.bfloat16)}, {"weights": torch.ones(4096)}
    )
    assert loss.dtype == torch.float32
    assert loss.item() == 4096


def ranking(scores: list[float], groups: list[int], ranks: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    return Ranking()({"scores": T(scores)}, {"group": T(groups), "rank": T(ranks)})


def test_ranking_by_hand() -> None:
    """Two prompts, one with three answers (3 pairs), one with two: each prompt weighs the same."""
    loss, stats = ranking([1.0, 0.0, 3.0, 2.0, -1.0], [7, 7, 7, 9, 9], [1, 2, 0, 1, 0])
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    first = (softplus(-1.0) + softplus(-2.0) + softplus(-3.0)) / 3
    assert loss.item() == pytest.approx(first + softplus(3.0), rel=1e-6)
    assert stats["pairs"].item() == 4
    assert stats["accuracy"].item() == pytest.approx(1.0)
    assert stats["margin"].item() == pytest.approx(2.0 - 3.0, rel=1e-6)
    assert (stats["score_min"].item(), stats["score_max"].item()) == (-1.0, 3.0)


def test_ranking_drops_ties() -> None:
    loss, stats = ranking([1.0, 5.0, 0.0], [0, 0, 0], [0, 0, 1])
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-5))) / 2, rel=1e-6)
    assert stats["pairs"].item() == 2


def test_extremes_leave_out_the_score_of_a_filler() -> None:
    """A filler is one sequence of two tokens: its score of 9 is nobody's."""
    _, stats = ranking([9.0], [0], [0])
    assert stats["score_min"].item() == math.inf
    assert stats["score_max"].item() == -math.inf
    _, stats = ranking([1.0, 2.0, 9.0], [0, 0, 1], [0, 1, 0])
    assert (stats["score_min"].item(), stats["score_max"].item()) == (1.0, 2.0)


def test_prompt_with_only_ties_adds_nothing() -> None:
    loss, stats = ranking([1.0, 5.0], [0, 0], [0, 0])
    assert loss.item() == 0
    assert stats["accuracy"].item() == 0


def test_ranking_of_an_untrained_head() -> None:
    """Equal scores: loss ln 2 per prompt, accuracy one half."""
    loss, stats = ranking([0.0] * 4, [0, 0, 1, 1], [0, 1, 1, 0])
    assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert stats["accuracy"].item() == 1.0


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.floats(-5, 5))
def test_ranking_sees_differences_only(ranks: list[int], shift: float) -> None:
    scores = [0.3 * index for index in range(len(ranks))]
    one, _ = ranking(scores, [0] * len(ranks), ranks)
    other, _ = ranking([score + shift for score in scores], [0] * len(ranks), ranks)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(0.25, 4), min_size=1, max_size=6), st.integers(0, 99))
def test_a_loss_weighs_its_tokens(weights: list[float], seed: int) -> None:
    """The weighted sum is the sum of each token's own loss times its weight; statistics count tokens once."""
    draw = torch.randn(3, len(weights), generator=torch.Generator().manual_seed(seed))
    for loss in (NegativeLogLikelihood(), PolicyClip(0.1), ValueClip(0.1)):
        output = {loss.head: draw[0]}
        names = [name for name in loss.fields if name != "weights"]
        fields = dict(zip(names, draw[1:], strict=False)) | {"weights": T(weights)}
        whole, stats = loss(output, fields)
        rows = [slice(i, i + 1) for i in range(len(weights))]
        ones = {"weights": torch.ones(1)}
        single = [loss({loss.head: draw[0][r]}, {n: fields[n][r] for n in names} | ones)[0] for r in rows]
        expected = sum(w * float(each) for w, each in zip(weights, single, strict=True))
        assert float(whole) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        _, plain = loss(output, fields | {"weights": torch.ones(len(weights))})
        assert {k: v for k, v in stats.items() if k != "loss"} == {k: v for k, v in plain.items() if k != "loss"}
