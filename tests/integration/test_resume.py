"""Interrupted by a real signal and run again, every stage ends with the bits of a run that nothing stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.small_stages import KEY, STEPS, digests, repeatable, stage
from helpers.wandb_file import history, of_kind, read_finished

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.faults.injector import EVENT
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.console import StageProgress
from quadriga.orchestrator.tracking.tracker import AXIS, read_metrics

pytestmark = pytest.mark.integration


def statuses(run_dir: RunDir) -> list[str]:
    """How each attempt ended."""
    return [attempt["status"] for attempt in run_dir.read_run()["attempts"]]


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Have this process send itself SIGTERM when a stage has done so many steps."""
    right = StageProgress.step

    def and_signal(self: StageProgress, done: int, metrics: Any) -> None:
        right(self, done, metrics)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(StageProgress, "step", and_signal)


@pytest.mark.parametrize("kind", ["pretrain", "sft", "reward"])
def test_training_goes_on_where_it_was_stopped(
    kind: str, uninterrupted_run: Callable[[str], RunDir], made_model: Path, tmp_path: Path
) -> None:
    settings = build(stage(kind, tmp_path, made_model))
    run_dir = RunDir(settings.run_dir)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch)
        assert run(settings) == 130
    assert run_dir.checkpoint_steps() == [2] and not list(run_dir.export_dir.iterdir())
    assert [row["global_step"] for row in read_metrics(run_dir.metrics_path)] == [1, 2]
    assert run(settings) == 0
    assert statuses(run_dir) == ["interrupted", "finished"]
    whole, rows = uninterrupted_run(kind), read_metrics(run_dir.metrics_path)
    assert digests(run_dir.export_dir) == digests(whole.export_dir)
    assert [row["global_step"] for row in rows] == list(range(1, STEPS + 1))
    assert repeatable(rows) == repeatable(read_metrics(whole.metrics_path))


def test_the_best_checkpoint_outlives_newer_ones_and_a_break(
    uninterrupted_run: Callable[[str], RunDir], made_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The highest loss is that of an early step, which is saved because the run is stopped there and for nothing else.

    Afterwards every step is saved by the clock, and what would be the best of them has no such metric.
    """
    loss = {row["global_step"]: row["train/loss"] for row in read_metrics(uninterrupted_run("sft").metrics_path)}
    worst = max(loss, key=lambda step: loss[step])
    assert worst < STEPS - 1
    best = {"metric": "train/loss", "mode": "max"}
    saved = {"every_steps": 10 * STEPS, "keep": 1, "keep_best": best}
    settings = build(stage("sft", tmp_path, made_model) | {"checkpoint": saved})
    run_dir = RunDir(settings.run_dir)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(worst, patch)
        assert run(settings) == 130
    assert run_dir.checkpoint_steps() == [worst]
    saved = {"every_minutes": 1e-6, "keep": 2, "keep_best": best | {"metric": "train/los"}}
    assert run(build(settings.model_dump(mode="json") | {"checkpoint": saved})) == 0
    assert run_dir.checkpoint_steps() == [worst, STEPS - 1, STEPS]
    said = " ".join(capfd.readouterr().out.split())
    for step in range(worst + 1, STEPS + 1):
        assert f"step {step} has no `train/los`, so it is not compared" in said


def test_ranking_goes_on_where_it_was_stopped(
    uninterrupted_run: Callable[[str], RunDir], small_chunks: None, made_model: Path, tmp_path: Path
) -> None:
    settings = build(stage("rank", tmp_path, made_model))
    run_dir = RunDir(settings.run_dir)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        assert run(settings) == 130
    (first,) = run_dir.samples_dir.glob("rankings-*.jsonl")
    written = first.stat().st_mtime_ns
    assert run(settings) == 0
    assert statuses(run_dir) == ["interrupted", "finished"] and first.stat().st_mtime_ns == written
    ours, theirs = (r.export_dir / "rankings.jsonl" for r in (run_dir, uninterrupted_run("rank")))
    assert ours.read_bytes() == theirs.read_bytes() and len(ours.read_text().splitlines()) > 10


def test_ppo_as_a_command_is_killed_and_stopped_and_goes_on(
    uninterrupted_run: Callable[[str], RunDir], made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    """It is killed while it writes a checkpoint, started again by its parent, stopped by a signal, and run again.

    Its environment is one in which other programs fail.
    """
    raw = stage("ppo", tmp_path, made_model, made_reward)
    killed = {"action": "kill", "role": "driver", "step": 1, "phase": "checkpoint", "after": 0.03}
    raw |= {"checkpoint": {"every_steps": 1}, "faults": {"planned": [killed]}}
    config, screen = tmp_path / "ppo.yaml", tmp_path / "screen.txt"
    config.write_text(yaml.safe_dump(raw))
    run_dir = RunDir(raw["run_dir"])
    with screen.open("wb") as output:
        command = [sys.executable, "-m", "quadriga.launch", "run", str(config), "--restart", "1"]
        # W&B's helper process of this process would keep the id of the run whose driver was killed.
        environment = os.environ | {"WANDB_API_KEY": KEY} | hostile(tmp_path)
        environment.pop("WANDB_SERVICE", None)
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_for_row(run_dir, process, screen, attempt=2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(240) == 130, screen.read_text()
        finally:
            process.kill()
    assert "The run was killed by SIGKILL; starting it again (1 of 1)." in " ".join(screen.read_text().split())
    done = len(read_metrics(run_dir.metrics_path))
    assert 1 <= done < STEPS and run_dir.checkpoint_steps()[-1] == done
    (fault,) = [event for event in run_dir.events() if event["event"] == EVENT]
    assert not Path(f"/proc/{fault['pid']}").exists()
    assert run(build(raw)) == 0
    assert statuses(run_dir) == ["lost", "interrupted", "finished"]
    whole, rows = uninterrupted_run("ppo"), read_metrics(run_dir.metrics_path)
    assert digests(run_dir.export_dir) == digests(whole.export_dir)
    assert set(digests(run_dir.export_dir)) == {"policy/model.safetensors", "critic/model.safetensors"}
    assert [row["global_step"] for row in rows] == list(range(1, STEPS + 1))
    assert repeatable(rows) == repeatable(read_metrics(whole.metrics_path))
    _, *finished = sorted(run_dir.path.glob("wandb/offline-run-*/*.wandb"))  # the first was cut off with its driver
    records = [read_finished(file) for file in finished]
    assert len(records) == 2 and len({of_kind(part, "run")[0].run_id for part in records}) == 1
    logged = [row[AXIS] for part in records for row in history(part)]
    assert logged == list(range(logged[0], STEPS + 1)) and logged[0] <= 2
    written = [screen, *(file for file in run_dir.path.rglob("*") if file.is_file())]
    assert not [file for file in written if KEY.encode() in file.read_bytes()]


def hostile(folder: Path) -> dict[str, str]:
    """An environment that people have: another Ray named, a home and a TMPDIR of a batch system, a proxy for all."""
    long = folder / ("d" * 90)
    long.mkdir()
    proxy = "http://127.0.0.1:9"
    return {
        "RAY_ADDRESS": "127.0.0.1:6379",
        "HOME": "/proc/nohome",
        "TMPDIR": str(long),
        "http_proxy": proxy,
        "https_proxy": proxy,
    }


def wait_for_row(run_dir: RunDir, process: "subprocess.Popen[bytes]", screen: Path, attempt: int) -> None:
    """Wait until this attempt (from 1) has written down its first step."""
    deadline = time.monotonic() + 300
    while not rows_of(run_dir, attempt):
        assert process.poll() is None and time.monotonic() < deadline, screen.read_text()
        time.sleep(0.05)


def rows_of(run_dir: RunDir, attempt: int) -> list[dict[str, Any]]:
    """Return the metrics rows that were written since this attempt began."""
    attempts = run_dir.read_run().get("attempts", [])
    if len(attempts) < attempt:
        return []
    began = datetime.fromisoformat(attempts[attempt - 1]["started"]).timestamp()
    return [row for row in read_metrics(run_dir.metrics_path) if row["time"] > began]
