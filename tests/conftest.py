"""What every test runs under: no network look-ups, no tracking account, one Ray cluster per test process.

Two processes share the tests that start clusters (`make test`), because half of their time is waiting. Each process
takes whole files, so that what a file starts for all of its tests starts once.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
)
for secret in ("WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(secret, None)

GROUPS = {
    "test_recovery": "interruptions",
    "test_resume": "interruptions",  # both compare with the same uninterrupted runs
    "test_cluster": "hosts",
    "test_hosts": "hosts",  # both make network namespaces
    "test_submit": "jobs",
}
"""File -> the group that one process runs; any other file is a group. These take longest, so they begin first."""


WORDS = ["sun", "moon", "star", "tree", "river", "stone", "bird", "fish", "wind", "rain", "red", "blue", "green", "old"]
"""What the small models' tokenizer has seen."""


class FileGroups(LoadScopeScheduling):
    """Distribution of whole groups of files over the processes (`pytest -n 2 --dist loadfile`)."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the group of a test."""
        stem = Path(nodeid.split("::")[0]).stem
        return GROUPS.get(stem, stem)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Replace xdist's distribution by file."""
    return FileGroups(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the groups begin in the order of `GROUPS`."""
    order = {stem: number for number, stem in enumerate(GROUPS)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


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
def ray_cluster() -> Iterator[None]:
    """The cluster that every in-process integration test shares."""
    from quadriga.actors.settings import ClusterSettings
    from quadriga.orchestrator.cluster.processes import connected

    with connected(ClusterSettings()):
        yield
