"""What tests share that start clusters: runs of every stage on the small models."""

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
