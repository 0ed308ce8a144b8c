"""Packed attention against its definition and against plain Hugging Face models.

"Detail N" is a section of "The N Implementation Details of RLHF with PPO" (Huang et al. 2024).
"""

from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from quadriga.kernels.attention import register_varlen_attention, varlen_attention

SIZES = dict(vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0)
CONFIGS = {
    "llama": LlamaConfig(
        **SIZES, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    ),
    "qwen2": Qwen2Config(
        **SIZES, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1
    ),
    "gpt2": GPT2Config(
        **SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}


def model(config, attention: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:  # type: ignore[no-untyped-def]
    register_varlen_attention()
    torch.manual_seed(0)
    # transformers writes the attention's name into the config that it is given.
    return AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=attention, dtype=dtype)


def packed(sequences: list[list[int]]) -> dict[str, Tensor | bool]:
    return {
        "input_ids": torch.tensor([[token for sequence in sequences for token in sequence]]),
        "position_ids": torch.tensor([[t for sequence in sequences for t in range(len(sequence))]]),
        "cu_seqlens": torch.tensor([0, *map(len, sequences)]).cumsum(0).int(),
        "use_cache": False,
    }


def definition(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    """Softmax attention written out, one sequence, head and query at a time."""
    out = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype)
    start = 0
    for length in lengths:
        for t in range(start, start + length):
            for head in range(q.shape[1]):
                shared = head // (q.shape[1] // k.shape[1])
                weights = torch.softmax(k[start : t + 1, shared] @ q[t, head] * scale, 0)
                out[t, head] = weights @ v[start : t + 1, shared]
        start += length
    return out


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), max_size=6), kv_heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_equals_the_definition(lengths: list[int], kv_heads: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(sum(lengths), h, 3, generator=rng, dtype=torch.float64) for h in (4, kv_heads, kv_heads))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    for x in (q, k, v):
        x.requires_grad_()
    found, expected = varlen_attention(q, k, v, cu_seqlens, 0.3), definition(q, k, v, lengths, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=rng, dtype=torch.float64)
    gradients = torch.autograd.grad((found * upstream).sum(), [q, k, v])
    if sum(lengths):
        for one, other in zip(gradients, torch.autograd.grad((expected * upstream).sum(), [q, k, v]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_default_scale_and_own_value_width() -> None:
    q, k, v = torch.randn(5, 2, 4), torch.randn(5, 2, 4), torch.randn(5, 2, 6)
    found = varlen_attention(q, k, v, torch.tensor([0, 2, 5]))
    torch.testing.assert_close(found, definition(q, k, v, [2, 3], 0.5))


@pytest.mark.parametrize("borders", [[0, 3], [1, 5], [0, 6], [0, 4, 2, 5]])
def test_borders_must_span_the_row(borders: list[int]) -> None:
    x = torch.randn(5, 1, 4)
    with pytest.raises(ValueError, match="cu_seqlens"):
        varlen_attention(x, x, x, torch.tensor(borders))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("lengths", [[7, 3, 5, 3, 1], [4, 4, 4], [6]], ids=str)
def test_packed_model_equals_one_sequence_at_a_time(family: str, lengths: list[int]) -> None:
    """Details 2 and 3: no padding, no mask, and still the plain model's logits and gradients."""
    rng = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, 50, (length,), generator=rng).tolist() for length in lengths]
    plain, ours = model(CONFIGS[family], "eager"), model(CONFIGS[family], "quadriga_varlen")
    expected = torch.cat([plain(input_ids=torch.tensor([s]), use_cache=False).logits[0] for s in sequences])
    found = ours(**packed(sequences)).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    upstream = torch.randn(expected.shape, generator=rng)
    (expected * upstream).sum().backward()
    (found * upstream).sum().backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-5 * max(1.0, scale), msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_sequences_do_not_see_each_other(family: str) -> None:
    """Changing one sequence, or the order of all, changes no bit of another."""
    ours = model(CONFIGS[family], "quadriga_varlen").eval()
    first, second, third = [5, 6, 7], [8, 9, 10], [11, 12]
    with torch.no_grad():
        before = ours(**packed([first, second, third])).logits[0]
        after = ours(**packed([first, [30, 31, 32], third])).logits[0]
    assert torch.equal(before[:3], after[:3])
    assert torch.equal(before[6:], after[6:])
    assert not torch.equal(before[3:6], after[3:6])


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    one, other = (model(CONFIGS["llama"], "quadriga_varlen").train() for _ in range(2))
    other.gradient_checkpointing_enable()
    batch = packed([[5, 6, 7], [8, 9], [10, 11, 12]])
    for each in (one, other):
        each(**batch).logits.square().sum().backward()
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def test_training_after_inference_on_the_same_lengths() -> None:
    """What is kept between calls must not be made of inference tensors."""
    x = torch.randn(7, 1, 4, requires_grad=True)
    borders = torch.tensor([0, 3, 4, 7])
    with torch.inference_mode():
        varlen_attention(x, x, x, borders)
    varlen_attention(x, x, x, borders).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("family", CONFIGS)
def test_missing_borders_are_an_error(family: str) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        model(CONFIGS[family], "quadriga_varlen")(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


def test_family_that_drops_keywords_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = GPT2Model.forward

    def forgetful(self, *args, cu_seqlens=None, **kwargs):  # type: ignore[no-untyped-def]
        return original(self, *args, **kwargs)

    ours = model(CONFIGS["gpt2"], "quadriga_varlen")
    monkeypatch.setattr(GPT2Model, "forward", forgetful)
    with pytest.raises(ValueError, match="does not pass keyword arguments on"):
        ours(**packed([[1, 2, 3]]))


def test_attention_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="attention_mask"):
        model(CONFIGS["llama"], "quadriga_varlen")(**packed([[1, 2, 3]]), attention_mask=torch.ones(1, 3))


def test_several_rows_are_an_error() -> None:
    rows = packed([[1, 2, 3]]) | {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match="one row"):
        model(CONFIGS["llama"], "quadriga_varlen")(**rows)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=4),
    window=st.one_of(st.none(), st.integers(1, 10)),
    softcap=st.one_of(st.none(), st.sampled_from([0.5, 3.0])),
    block=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_window_and_cap_equal_the_definition(
    lengths: list[int], window: int | None, softcap: float | None, block: int, seed: int
) -> None:
    """A token sees the last `window` tokens, itself included, whatever the block of queries."""
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(sum(lengths), h, 3, generator=rng, dtype=torch.float64) for h in (4, 2, 2))
    for x in (q, k, v):
        x.requires_grad_()
    rows, start = [], 0
    for length in lengths:
        for t in range(start, start + length):
            seen = slice(max(start, t + 1 - (window or length)), t + 1)
            for head in range(4):
                scores = k[seen, head // 2] @ q[t, head] * 0.7
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                rows.append(torch.softmax(scores, 0) @ v[seen, head // 2])
        start += length
    expected = torch.stack(rows).view(-1, 4, 3) if rows else q.new_zeros(0, 4, 3)
    with patch("quadriga.kernels.attention.BLOCK", block):
        borders = torch.tensor([0, *lengths]).cumsum(0).int()
        found = varlen_attention(q, k, v, borders, 0.7, window=window, softcap=softcap)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        if rows:
            upstream = torch.randn(expected.shape, generator=rng, dtype=torch.float64)
            ours = torch.autograd.grad((found * upstream).sum(), [q, k, v])
            theirs = torch.autograd.grad((expected * upstream).sum(), [q, k, v])
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_window_of_a_model_equals_its_own() -> None:
    windowed = MistralConfig(
        **SIZES, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, sliding_window=3,
        num_key_value_heads=2,
    )  # fmt: skip
    ours, plain = model(windowed, "quadriga_varlen"), model(windowed, "eager")
    sequences = [[1, 2, 3, 9, 8, 7, 6], [4, 5], [11, 12, 13, 14]]
    found = ours(**packed(sequences)).logits[0]
    expected = torch.cat([plain(torch.tensor([ids]), use_cache=False).logits[0] for ids in sequences])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
