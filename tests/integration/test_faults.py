"""A process is killed and may not be replaced: the run ends, says which and when, and leaves nothing behind."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.small_stages import stage

from quadriga.data.rundir import RunDir
from quadriga.launch.cli.app import main
from quadriga.orchestrator.stages.ppo.trainer import Ppo

pytestmark = pytest.mark.integration


def wait_until_gone(pid: int) -> None:
    """Fails when a process lives on."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.1)


def test_a_killed_critic_ends_the_run_with_its_name(
    ray_cluster: None,
    made_model: Path,
    made_reward: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = stage("ppo", tmp_path, made_model, made_reward)
    raw["cluster"] = raw["cluster"] | {"recovery": {"max_losses": 0}}
    config, right = tmp_path / "ppo.yaml", Ppo.update
    config.write_text(yaml.safe_dump(raw))
    pids: dict[str, int] = {}

    def kill_then_update(self: Ppo, *arguments: Any) -> dict[str, float]:
        if self.state.step == 1:
            pids.update({role: group.description["pid"] for role, group in self.running.groups.items()})
            os.kill(pids["critic"], signal.SIGKILL)
            wait_until_gone(pids["critic"])
        return right(self, *arguments)

    monkeypatch.setattr(Ppo, "update", kill_then_update)
    began = time.monotonic()
    assert main(["run", str(config)]) == 1
    assert time.monotonic() - began < 200
    said = " ".join(capsys.readouterr().err.split())
    assert "Failed: update: critic 0 died" in said and "Traceback" not in said
    record = RunDir(raw["run_dir"]).read_run()
    assert record["status"] == record["attempts"][-1]["status"] == "failed"
    assert record["attempts"][-1]["error"].startswith("update: critic 0 died")
    assert set(pids) == {"actor", "critic", "reference", "reward"}
    for pid in pids.values():
        wait_until_gone(pid)
