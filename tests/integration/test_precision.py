"""PPO in bfloat16 and on two tensor-parallel processes, for real on CPU: no check stops it, and log-probs agree."""

from pathlib import Path
from typing import Any

import pytest
from helpers.small_stages import stage

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration


def two_steps(cluster: dict[str, Any], folder: Path, model: Path, reward: Path) -> list[dict[str, float]]:
    """Run PPO for two steps; return its rows."""
    raw = stage("ppo", folder, model, reward) | {"total_steps": 2, "tracking": {"wandb": False}}
    raw["cluster"] = raw["cluster"] | cluster | {"rollout": raw["cluster"]["rollout"] | cluster.get("rollout", {})}
    assert run(build(raw)) == 0
    return read_metrics(RunDir(raw["run_dir"]).metrics_path)


def test_bfloat16(ray_cluster: None, made_model: Path, made_reward: Path, tmp_path: Path) -> None:
    rows = two_steps({"dtype": "bfloat16"}, tmp_path, made_model, made_reward)
    assert len(rows) == 2
    for row in rows:
        # bfloat16 has 8 bits: a logit near 4 is rounded by up to 1/64.
        assert 1e-4 < row["rollout/logprob_diff_mean"] < 0.05
        assert row["rollout/logprob_outliers"] < 0.05


@pytest.mark.slow
def test_tensor_parallel(ray_cluster: None, made_model: Path, made_reward: Path, tmp_path: Path) -> None:
    rows = two_steps({"rollout": {"tensor_parallel": 2}}, tmp_path, made_model, made_reward)
    assert len(rows) == 2
    assert all(row["rollout/logprob_diff_max"] < 1e-4 for row in rows)
