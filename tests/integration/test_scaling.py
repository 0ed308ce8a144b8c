"""Rollout workers come and go while a run goes on: nothing is lost, nothing is stale, nothing changes."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.small_stages import digests, repeatable, stage

from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.launch.jobs.control import scale_here, workers_of
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration

SLOW = {"action": "slow", "role": "actor", "step": 7, "phase": "update", "seconds": 8}
"""Time for newcomers, who take seconds to start, in a run whose steps take tenths of one."""


def scaled_run(config: dict[str, Any]) -> RunDir:
    """A run that is asked for three rollout workers after three steps, and for one when three have served."""
    settings = build(config | {"faults": {"planned": [SLOW]}})
    run_dir = RunDir(settings.run_dir)
    over = threading.Event()

    def served() -> list[float]:
        rows = read_metrics(run_dir.metrics_path) if run_dir.metrics_path.exists() else []
        return [row["system/rollout_workers"] for row in rows]

    def ask() -> None:
        for due, workers in ((lambda: len(served()) >= 3, 3), (lambda: 3 in served(), 1)):
            while not due():
                if over.wait(0.02):
                    return
            scale_here(run_dir, workers)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert run(settings) == 0
    finally:
        over.set()
        asking.join()
    return run_dir


def run_alone(config: dict[str, Any]) -> RunDir:
    """A run of one worker from start to end."""
    settings = build(config)
    assert run(settings) == 0
    return RunDir(settings.run_dir)


def test_workers_join_and_leave_and_nothing_changes(
    ray_cluster: None, made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    runs = {}
    for name, start in (("alone", run_alone), ("scaled", scaled_run)):
        config = stage("ppo", tmp_path / name, made_model, made_reward)
        config |= {"total_steps": 14, "tracking": {"samples": 1000, "wandb": False}}
        runs[name] = start(config)
    scaled = runs["scaled"]
    events = [(e["before"], e["rollout"]) for e in scaled.events() if e["event"] == "scaled"]
    assert events == [(1, 3), (3, 1)]
    rows = read_metrics(scaled.metrics_path)
    workers = [int(row["system/rollout_workers"]) for row in rows]
    assert workers[0] == 1 and max(workers) == 3 and workers[-1] == 1
    assert digests(scaled.export_dir) == digests(runs["alone"].export_dir)
    assert repeatable(rows) == repeatable(read_metrics(runs["alone"].metrics_path))
    tables = [pq.read_table(file).to_pydict() for file in sorted(scaled.samples_dir.glob("step-*.parquet"))]
    keys = Counter(key for t in tables for key in zip(t["global_step"], t["prompt_id"], t["sample_index"], strict=True))
    assert set(keys.values()) == {1} and len(keys) == 16 * len(rows)
    for table in tables:  # the policy after n steps draws the answers of step n + 1
        assert {v + 1 for v in table["policy_version"]} == set(table["global_step"])


@pytest.mark.parametrize("text", ["actor=2", "rollout=0", "rollout=two", "rollout"])
def test_only_rollout_workers_come_and_go(text: str) -> None:
    with pytest.raises(UserError, match="write rollout=N"):
        workers_of(text)


def test_a_run_that_does_not_run_is_not_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Nothing is running"):
        scale_here(RunDir.create(tmp_path / "run"), 2)
