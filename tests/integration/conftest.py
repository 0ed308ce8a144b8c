"""Models small enough to be made on the spot, and runs of every stage on them."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.small_stages import KEY, stage

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.run import run
from quadriga.orchestrator.stages.rank import trainer as rank

WORDS = ["sun", "moon", "star", "tree", "river", "stone", "bird", "fish", "wind", "rain", "red", "blue", "green", "old"]


@pytest.fixture(scope="session")
def made_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.1M parameters with a trained tokenizer and random weights."""
    from quadriga.actors.model.export import save_fresh_model
    from quadriga.data.tokens.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "policy"
    tokenizer = train_tokenizer([" ".join(WORDS) + ". What is it? It is so."] * 4, 300)
    shape = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    save_fresh_model(shape, tokenizer, 0, folder)
    return folder


@pytest.fixture(scope="session")
def made_reward(made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence-classification model on the same trunk, with a random head and a shift."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "reward"
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(made_model, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.config.reward_shift = 0.25
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(made_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_functions() -> Iterator[None]:
    """Makes `helpers.reward_functions` importable in the subprocesses of reward functions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def small_chunks() -> Iterator[None]:
    """Ranks five prompts at a time, so that a few are enough to be stopped between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "CHUNK_PROMPTS", 5)
        yield


@pytest.fixture(scope="session")
def uninterrupted_run(
    ray_cluster: None,
    reward_functions: None,
    small_chunks: None,
    made_model: Path,
    made_reward: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], RunDir]:
    """Kind of stage -> a run of it, from start to end without a break. Each is run once, when first asked for."""

    @cache
    def run_once(kind: str) -> RunDir:
        settings = build(stage(kind, tmp_path_factory.mktemp(kind), made_model, made_reward))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_API_KEY", KEY)
            assert run(settings) == 0
        return RunDir(settings.run_dir)

    return run_once
