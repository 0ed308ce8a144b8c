"""Processes are killed, stopped and made to fail while PPO runs: it ends with the bytes of a run that nothing befell."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny import digests, repeatable, stage

from quadriga.data.rundir import RunDir
from quadriga.launch.config import build
from quadriga.orchestrator.faults import EVENT
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking import read_metrics

pytestmark = pytest.mark.integration

PPO_STEPS = 12


def chaos_ppo(folder: Path, model: Path, reward: Path, faults: dict[str, Any]) -> dict[str, Any]:
    """PPO on two policy ranks and two rollout workers, twelve steps, a checkpoint every three."""
    config = stage("ppo", folder, model, reward)
    cluster = config["cluster"] | {"actor": {"ranks": 2}, "rollout": config["cluster"]["rollout"] | {"workers": 2}}
    cluster["deadlines"] = cluster["deadlines"] | {"heartbeat": 10}
    return config | {
        "cluster": cluster,
        "total_steps": PPO_STEPS,
        "checkpoint": {"every_steps": 3, "keep": 2},
        "faults": faults,
        "tracking": {"samples": 1000, "wandb": False},
    }


@pytest.fixture(scope="module")
def chaos(
    ray_cluster: None, made_model: Path, made_reward: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RunDir]:
    """Runs the same PPO with these planned faults; without any, once."""

    def run_with(*planned: dict[str, Any]) -> RunDir:
        folder = tmp_path_factory.mktemp("chaos")
        settings = build(chaos_ppo(folder, made_model, made_reward, {"planned": list(planned)}))
        assert run(settings) == 0
        return RunDir(settings.run_dir)

    quiet = cache(lambda: run_with())
    return lambda *planned: run_with(*planned) if planned else quiet()


def same_history(one: RunDir, other: RunDir) -> None:
    """Same weights to the byte, same numbers, and every sample once."""
    assert digests(one.export_dir) == digests(other.export_dir)
    rows = read_metrics(one.metrics_path)
    assert [row["global_step"] for row in rows] == list(range(1, PPO_STEPS + 1))
    assert repeatable(rows) == repeatable(read_metrics(other.metrics_path))
    assert samples(one) == samples(other)
    assert set(samples(one).values()) == {1} and len(samples(one)) == 16 * PPO_STEPS


def samples(run_dir: RunDir) -> Counter[tuple[int, str, int]]:
    """How often each sample (step, prompt id, index) is in the history."""
    tables = [pq.read_table(file).to_pydict() for file in sorted(run_dir.samples_dir.glob("step-*.parquet"))]
    return Counter(key for t in tables for key in zip(t["global_step"], t["prompt_id"], t["sample_index"], strict=True))


def witnessed(run_dir: RunDir, action: str, role: str, lost: str) -> list[dict[str, Any]]:
    """The events of a run in which this fault happened and this process was missed for it."""
    events = run_dir.events()
    assert [e for e in events if e["event"] == EVENT and (e["action"], e["role"]) == (action, role)], events
    assert [e for e in events if e["event"] == "lost" and e["actor"] == lost], events
    return events


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "kill", "role": "rollout", "rank": 1, "step": 2, "phase": "generate", "after": 0.05},
        {"action": "kill", "role": "actor", "rank": 1, "step": 5, "phase": "update", "after": 0.02},
        {"action": "kill", "role": "critic", "rank": 0, "step": 8, "phase": "values"},
        {"action": "kill", "role": "reference", "rank": 0, "step": 4, "phase": "generate"},
        {"action": "kill", "role": "reward", "rank": 0, "step": 2, "phase": "score"},
        {"action": "raise", "role": "actor", "rank": 0, "step": 5, "phase": "update"},
        {"action": "kill", "role": "actor", "rank": 0, "step": 7, "phase": "sync", "after": 0.01},
    ],
    ids=lambda fault: f"{fault['action']}-{fault['role']}-{fault['rank']}-{fault.get('phase')}",
)
def test_a_lost_process_changes_nothing(chaos: Callable[..., RunDir], fault: dict[str, Any]) -> None:
    run_dir = chaos(fault)
    witnessed(run_dir, fault["action"], fault["role"], f"{fault['role']} {fault['rank']}")
    same_history(run_dir, chaos())
