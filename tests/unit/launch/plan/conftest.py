"""Configs of Llama 3.1 8B on eight H100, and their plans on a machine that was never calibrated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quadriga.launch.config.load import load_config
from quadriga.launch.plan.planner import Plan, make_plans

PPO = {
    "stage": "ppo",
    "name": "helpful",
    "policy": "models/llama-3.1-8b",
    "reward": {"type": "model", "path": "models/not-there-yet"},
    "prompts": {"train": "prompts.jsonl", "max_tokens": 512},
    "sampling": {"max_tokens": 512},
    "cluster": {
        "device": "cuda",
        "dtype": "bfloat16",
        "placement": "colocate",
        **{role: {"ranks": 8, "zero_stage": 3} for role in ("actor", "critic", "reference", "reward")},
        "rollout": {"workers": 8, "kv_cache_bytes": 8 << 30, "enforce_eager": False, "prefix_caching": True},
        "train_tokens": 2048,
        "forward_tokens": 16384,
        "persistence_threshold": 100000,
        "bucket_bytes": 1 << 30,
    },
}
SFT = {
    "stage": "sft",
    "name": "tune",
    "model": "models/llama-3.1-8b",
    "data": {"train": "rows.jsonl", "max_tokens": 1024},
    "cluster": {"device": "cuda", "dtype": "bfloat16", "train_tokens": 1024, "forward_tokens": 1024},
}

Planner = Callable[..., Plan]
"""Overrides -> the only plan of a config, for GPUs of 80 GB."""


@pytest.fixture(autouse=True)
def no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine measured must not change a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def sft_file(write: Any) -> Path:
    """A fine-tuning config."""
    return write(SFT, "sft.yaml")  # type: ignore[no-any-return]


@pytest.fixture
def ppo_file(write: Any) -> Path:
    """A PPO config."""
    return write(PPO, "ppo.yaml")  # type: ignore[no-any-return]


@pytest.fixture
def plan_sft(sft_file: Path) -> Planner:
    """Plan the fine-tuning config."""
    return lambda *overrides: make_plans(load_config(sft_file, overrides), 80_000_000_000)[0]


@pytest.fixture
def plan_ppo(ppo_file: Path) -> Planner:
    """Plan the PPO config."""
    return lambda *overrides: make_plans(load_config(ppo_file, overrides), 80_000_000_000)[0]
