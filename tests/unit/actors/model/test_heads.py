"""Scalar heads of families that name them differently, and reward models that have none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from quadriga.actors.model.export import export_model
from quadriga.actors.model.folder import check_reward_head
from quadriga.actors.model.heads import ModelSpec, load_model
from quadriga.data.errors import UserError

SIZES = {
    "llama": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2},
}
"""Families whose token classification calls its head `score` (the first) or `classifier` (the others)."""
IDS = [5, 9, 2, 7, 11, 3]


def make(family: str, folder: Path, auto: Any, **more: Any) -> Path:
    """Save a tiny random model of a family, of the given auto class."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=64, pad_token_id=0, **SIZES[family], **more)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def last_score(folder: Path) -> float:
    """Score of the ids by transformers' own sequence classification."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([IDS])).logits[0, 0])


@pytest.mark.parametrize("family", SIZES)
def test_trained_reward_head_is_loaded(family: str, tmp_path: Path) -> None:
    """The head is the folder's own, whatever the seed, and an export of it scores the same."""
    folder = make(family, tmp_path / "reward", AutoModelForSequenceClassification, num_labels=1)
    model = load_model(ModelSpec(str(folder), "scalar", seed=1), torch.float32)
    stored = load_file(folder / "model.safetensors")["score.weight"]
    assert torch.equal(model.score.weight, stored)
    export_model(model, tmp_path / "export", "reward", {"pad_token_id": 0}, 1 << 20, write=True)
    assert last_score(tmp_path / "export") == last_score(folder)


def test_missing_head_is_started_from_the_seed(tmp_path: Path) -> None:
    """N(0, 1/(d+1)) by default; the same seed gives the same head, another seed another."""
    folder = make("gpt2", tmp_path / "policy", AutoModelForCausalLM)
    one, same, other = (
        load_model(ModelSpec(str(folder), "scalar", seed=seed), torch.float32).score.weight.detach()
        for seed in (1, 1, 2)
    )
    expected = torch.randn(1, 32, generator=torch.Generator().manual_seed(1)) / 33**0.5
    torch.testing.assert_close(one, expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_reward_model_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = make("gpt2", tmp_path / "policy", AutoModelForCausalLM)
    with pytest.raises(UserError, match=r"has no trained reward head .* Give the export of a `stage: reward` run"):
        check_reward_head(folder)


def test_reward_model_with_two_labels_is_refused(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "classes", AutoModelForSequenceClassification, num_labels=2)
    with pytest.raises(UserError, match=r"has 2 labels, and a reward model has one"):
        check_reward_head(folder)
