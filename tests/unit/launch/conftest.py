"""Fixtures: a model small enough to be built on the spot, and configs that name it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from quadriga.orchestrator.settings import TrainStage

CHATS = [
    "Which bird sings at night? The owl sings at night.",
    "What is red? The stone by the river is red.",
    "Where is the moon? The moon is over the old tree.",
]


def save_model(folder: Path, heads: int) -> Path:
    """Save a Llama of width 64, so head size 64 / heads, with a tokenizer of three sentences; return its folder.

    Checks read its config and look for a file of weights; no test here loads them.
    """
    import numpy as np
    from safetensors.numpy import save_file
    from transformers import LlamaConfig

    from quadriga.data.tokens.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(CHATS * 2, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    config.save_pretrained(folder)
    save_file({"model.norm.weight": np.ones(64, np.float32)}, folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the terminal so wide that no path is broken over two lines."""
    monkeypatch.setenv("COLUMNS", "500")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that vLLM on CPU can serve: head size 32."""
    return save_model(tmp_path_factory.mktemp("model"), heads=2)


@pytest.fixture(scope="session")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that vLLM on CPU cannot serve: head size 8."""
    return save_model(tmp_path_factory.mktemp("odd-model"), heads=8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a config as YAML (or a text as it is) and returns its path."""

    def to_file(content: Any, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return to_file


@pytest.fixture
def sft(model: Path) -> dict[str, Any]:
    """A valid fine-tuning config."""
    return {
        "stage": "sft",
        "name": "tune",
        "model": {"path": str(model)},
        "data": {"train": {"builtin": "assistant.demonstrations", "rows": 4}, "max_tokens": 128},
        "cluster": {"device": "cpu"},
    }


class UnknownStage(TrainStage):
    """A stage that no check knows."""

    stage: Literal["unknown"] = "unknown"


@pytest.fixture
def unknown_stage(sft: dict[str, Any]) -> UnknownStage:
    """A stage of a kind whose rows have no loader."""
    return UnknownStage.model_validate(sft | {"stage": "unknown"})


@pytest.fixture
def ppo(model: Path) -> dict[str, Any]:
    """A valid PPO config with a reward function."""
    return {
        "stage": "ppo",
        "name": "improve",
        "policy": {"path": str(model)},
        "critic": {"path": str(model)},
        "reward": {"type": "function", "function": "json:dumps"},
        "prompts": {"train": {"builtin": "assistant.prompts", "rows": 4}, "max_tokens": 96},
        "sampling": {"max_tokens": 32},
        "cluster": {"device": "cpu"},
    }
