"""Families whose packed forward agrees with the model's own are accepted; others are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from quadriga.actors.model import heads
from quadriga.actors.model.equivalence import check_packed_forward
from quadriga.actors.model.heads import ModelSpec, load_model, token_logprobs
from quadriga.data.errors import UserError
from quadriga.kernels.logprobs import LogitTransform

USUAL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = USUAL | {"num_key_value_heads": 1}
GEMMA = GROUPED | {"head_dim": 16}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}


def make(family: str, folder: Path, auto: Any, fields: dict[str, Any], dtype: Any = torch.float32) -> str:
    """Save a small random model whose logits are several nats apart."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=96, pad_token_id=0, **fields)
    model = auto.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3 if "layers" in name or ".h." in name else 0.8)
    model.save_pretrained(folder)
    return str(folder)


def check(path: str, head: Any = "logprobs", dtype: Any = torch.float32) -> Any:
    """Load a model as a worker does and compare its forwards."""
    model = load_model(ModelSpec(path, head), dtype)
    check_packed_forward(model, model, head, path, torch.device("cpu"))
    return model


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", GROUPED),
        ("mistral", GROUPED),
        ("qwen3", GEMMA),
        ("gemma", GEMMA),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        ("gpt_neox", USUAL),
        ("granite", GROUPED | {"logits_scaling": 8.0}),
        ("cohere", GROUPED | {"logit_scale": 0.0625}),
        ("gemma3_text", GEMMA | {"final_logit_softcapping": 5.0}),
    ],
)
def test_family_that_agrees(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    check(make(family, tmp_path, AutoModelForCausalLM, fields))


def test_check_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """Head and attention are ours again: log-probs, not logits, and no mask."""
    model = check(make("llama", tmp_path, AutoModelForCausalLM, GROUPED))
    batch = {
        "token_ids": torch.tensor([3, 4, 5, 6]),
        "position_ids": torch.tensor([0, 1, 0, 1]),
        "cu_seqlens": torch.tensor([0, 2, 4]),
        "first": torch.tensor([True, False, True, False]),
    }
    logprobs, entropies = token_logprobs(model, model, batch, 1.0)
    assert logprobs[0] == logprobs[2] == 0
    assert bool((entropies[[1, 3]] > 0).all())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scalar_model_that_agrees(family: str, tmp_path: Path) -> None:
    fields = GROUPED if family == "llama" else {"n_embd": 32, "n_layer": 2, "n_head": 2}
    check(make(family, tmp_path, AutoModelForTokenClassification, fields | {"num_labels": 1}), "scalar")


def test_bfloat16_is_compared_by_its_mean(tmp_path: Path) -> None:
    check(make("llama", tmp_path, AutoModelForCausalLM, GROUPED), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}),
        ("mamba2", MAMBA),
    ],
)
def test_family_that_would_be_silently_wrong(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """A convolution or a state that continues into the next sequence."""
    path = make(family, tmp_path, AutoModelForCausalLM, fields)
    with pytest.raises(
        UserError, match=rf"log-probs of its family \({family}\) are off by .* from those of the model's"
    ):
        check(path)


def test_unknown_change_of_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that scales its logits under a name that is not known here."""
    monkeypatch.setattr(heads, "logit_transform", lambda config: LogitTransform())
    with pytest.raises(UserError, match=r"log-probs of its family \(granite\) are off by"):
        check(make("granite", tmp_path, AutoModelForCausalLM, GROUPED | {"logits_scaling": 8.0}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leak_is_found_in_either_type(dtype: Any, tmp_path: Path) -> None:
    path = make("mamba2", tmp_path, AutoModelForCausalLM, MAMBA)
    with pytest.raises(UserError, match=r"are off by"):
        check(path, dtype=dtype)


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, "no cu_seqlens|no attention_mask"),
        ("falcon", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, "no attention but its own"),
    ],
)
def test_family_that_does_not_run(family: str, fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = make(family, tmp_path, AutoModelForCausalLM, fields)
    with pytest.raises(UserError, match=rf"cannot be trained here: .*({reason})"):
        check(path)
