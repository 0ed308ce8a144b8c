"""Tracking: one row per step, read back from metrics.jsonl, Parquet and W&B's offline file."""

import io
import json
import logging
import math
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import wandb
from helpers.wandb_file import history, read_finished

from quadriga.data.errors import Fault
from quadriga.orchestrator.settings import TrackingSettings
from quadriga.orchestrator.tracking import tracker as tracking
from quadriga.orchestrator.tracking.tracker import AXIS, NAMESPACES, Tracker, read_metrics, wandb_mode, wandb_project

KEY = "0123456789abcdef" * 2 + "feedbeef"
NO_WANDB = TrackingSettings(wandb=False, samples=2)


@dataclass
class Folder:
    path: Path

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"


def sample(i: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt": f"p{i}",
        "response": f"r{i}",
        "reward": i / 2,
        "finish_reason": "stop",
        "policy_version": i,
    } | more


@dataclass
class Attempts:
    """A run of steps 1..3 whose checkpoint holds step 2, resumed to step 4."""

    folder: Folder
    run_ids: list[str]
    address: str | None
    warnings: list[str]
    records: list[list[Any]]
    output: str


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    folder = Folder(tmp_path_factory.mktemp("run"))
    settings = TrackingSettings(project="chariot", group="recipe", samples=2)
    output, warnings = io.StringIO(), list[str]()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr(tracking.log, "warning", lambda message, *values: warnings.append(message % values))
        with Tracker(folder, settings, "ppo", "round-1", {"seed": 7, "engine": {"key": f"x{KEY}"}}) as first:
            for step in (1, 2, 3):
                metrics = {"train/loss": 1 / step, "rollout/logprob_diff_max": 1e-6, "timing_s/generate": 0.5}
                first.log(step, metrics, [sample(i, gold=0.25) for i in range(3)])
        time.sleep(1)  # W&B names a run's folder after the second
        second = Tracker(folder, settings, "ppo", "round-1", {"seed": 7}, run_id=first.run_id, resume_step=2)
        for step in (3, 4):
            # Step 3 was logged before and is run again, so it is compared only.
            metrics = {"train/loss": 1 / step, "actor/grad_norm": math.nan, "timing_s/generate": 9.0}
            second.log(step, metrics, [sample(9, gold=0.5)])
        second.close(1)
        second.close(1)
    files = sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))
    records = [read_finished(path) for path in files]
    return Attempts(folder, [first.run_id, second.run_id], second.address, warnings, records, output.getvalue())


def test_metrics_file_has_each_step_once_after_a_resume(attempts: Attempts) -> None:
    rows = read_metrics(attempts.folder.metrics_path)
    assert [row["global_step"] for row in rows] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in rows] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert [row["timing_s/generate"] for row in rows] == [0.5, 0.5, 0.5, 9.0]
    assert rows[3]["actor/grad_norm"] is None
    assert "actor/grad_norm" not in rows[2]
    assert [row.get("system/nonfinite_metrics") for row in rows] == [None, None, None, 1]
    assert all(earlier["time"] <= later["time"] for earlier, later in pairwise(rows))


def test_samples_of_each_step_are_parquet(attempts: Attempts) -> None:
    names = sorted(path.name for path in attempts.folder.samples_dir.iterdir())
    assert names == [f"step-{step:06d}.parquet" for step in (1, 2, 3, 4)]
    table = pq.read_table(attempts.folder.samples_dir / "step-000002.parquet")
    assert table.num_rows == 2  # settings.samples
    assert table.column_names[:3] == ["global_step", "prompt", "response"]
    assert table.column_names[-1] == "gold"
    assert table["global_step"].to_pylist() == [2, 2]
    assert table["kl"].to_pylist() == [None, None]
    assert table["response"].to_pylist() == ["r0", "r1"]
    assert table["reward"].to_pylist() == [0.0, 0.5]
    replayed = pq.read_table(attempts.folder.samples_dir / "step-000003.parquet")
    assert replayed["response"].to_pylist() == ["r0", "r1"]


def test_wandb_offline_file_has_one_axis_for_every_namespace(attempts: Attempts) -> None:
    assert not [warning for warning in attempts.warnings if "W&B" in warning]
    for records in attempts.records:
        metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
        assert {metric.name for metric in metrics if metric.name} == {AXIS}
        globs = {metric.glob_name: metric.step_metric for metric in metrics if metric.glob_name}
        assert globs == {f"{space}/*": "train/global_step" for space in NAMESPACES}


def test_wandb_offline_file_has_keys_and_values(attempts: Attempts) -> None:
    first, second = (history(records) for records in attempts.records)
    assert [row["train/global_step"] for row in first] == [1, 2, 3]
    assert [row["train/global_step"] for row in second] == [4]
    assert [row["_step"] for row in first] == [0, 1, 2]
    assert first[1]["train/loss"] == 0.5
    assert first[1]["rollout/logprob_diff_max"] == 1e-6
    assert "actor/grad_norm" not in second[0]  # it was NaN
    exits = [r.exit.exit_code for records in attempts.records for r in records if r.WhichOneof("record_type") == "exit"]
    assert exits == [0, 1]


def test_wandb_offline_file_has_a_sample_table_per_step(attempts: Attempts) -> None:
    rows = [row for records in attempts.records for row in history(records)]
    assert len(rows) == 4
    for row, file in zip(rows, [0, 0, 0, 1], strict=True):
        entry = row["rollout/samples"]
        assert entry["_type"] == "table-file"
        folder = sorted(attempts.folder.path.glob("wandb/offline-run-*"))[file]
        table = json.loads((folder / "files" / entry["path"]).read_text())
        assert table["columns"][:3] == ["global_step", "prompt", "response"]
        assert "gold" in table["columns"]
        records = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
        assert [record["global_step"] for record in records] == [row["train/global_step"]] * len(records)
        assert [record["response"] for record in records] == (["r0", "r1"] if file == 0 else ["r9"])


def test_both_attempts_are_one_wandb_run(attempts: Attempts) -> None:
    assert attempts.run_ids[0] == attempts.run_ids[1]
    assert len(attempts.records) == 2
    for records in attempts.records:
        (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.resume) == (attempts.run_ids[0], True)
        assert (run.project, run.run_group, run.job_type, run.display_name) == ("chariot", "recipe", "ppo", "round-1")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 7
    assert attempts.address
    assert attempts.address.startswith("offline; upload it with: wandb sync ")


def test_the_printed_command_finds_the_offline_run(attempts: Attempts) -> None:
    assert attempts.address
    command = attempts.address.removeprefix("offline; upload it with: ").split()
    found = subprocess.run(
        [sys.executable, "-m", *command[:2], "--dry-run", *command[2:]], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0
    assert f"run-{attempts.run_ids[1]}.wandb" in found.stderr + found.stdout


def test_the_key_and_the_environment_are_in_no_file(attempts: Attempts) -> None:
    files = [path for path in attempts.folder.path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not {"wandb-metadata.json", "requirements.txt", "output.log"} & {path.name for path in files}
    # What W&B stages for a later upload belongs to the run, not to the user's home.
    assert list(attempts.folder.path.glob("wandb/data/artifacts/staging/*"))


def test_wandb_prints_nothing(attempts: Attempts) -> None:
    assert attempts.output == ""


def test_without_a_key_wandb_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_mode(TrackingSettings()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode(TrackingSettings()) == "online"
    assert wandb_mode(NO_WANDB) == "disabled"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(TrackingSettings()) == "disabled"


def test_a_server_out_of_reach_gives_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "START_TIMEOUT", 0.5)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens on the discard port
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # it reads the environment once
    with caplog.at_level(logging.WARNING), Tracker(Folder(tmp_path), TrackingSettings(), "sft", "x", {}) as tracker:
        assert tracker.address
        assert tracker.address.startswith("offline; ")
        tracker.log(1, {"train/loss": 1.0})
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert [row["train/loss"] for row in history(read_finished(path))] == [1.0]
    (warning,) = [record.message for record in caplog.records if "W&B" in record.message]
    assert warning.startswith("W&B failed while starting the online run (")
    assert "127.0.0.1:9" in warning
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_wandb_errors_do_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempted: list[float] = []

    class Broken:
        url = "https://example.org/run"
        dir = str(tmp_path)

        def log(self, row: dict[str, Any]) -> None:
            attempted.append(row["train/loss"])
            raise ConnectionError("broken pipe")

    monkeypatch.setattr(tracking, "_init", lambda *args: Broken())
    with caplog.at_level(logging.WARNING), Tracker(Folder(tmp_path), TrackingSettings(), "sft", "x", {}) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"train/loss": 1.0 / step})
    assert attempted == [1.0, 1 / 2, 1 / 3]
    assert [row["global_step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [record.message for record in caplog.records] == [
        "W&B failed while logging (broken pipe). The run continues; metrics.jsonl has every step."
    ]


def test_numbers_of_any_kind_are_written_as_json_numbers(tmp_path: Path) -> None:
    with Tracker(Folder(tmp_path), NO_WANDB, "sft", "x", {}) as tracker:
        values = {
            "train/a": np.float64(0.1),
            "train/b": np.int64(3),
            "train/c": np.array(2.5, np.float32),
            "train/d": 7,
        }
        tracker.log(0, values | {"train/e": math.inf})
        assert tracker.address is None
        assert tracker.nonfinite == {"train/e": 1}
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["train/a"], row["train/b"], row["train/c"], row["train/d"]) == (0.1, 3, 2.5, 7)
    assert row["train/e"] is None
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("name", ["loss", "losses/a", "train/", "train/global_step", "/x"])
def test_a_metric_outside_the_namespaces_is_a_fault(tmp_path: Path, name: str) -> None:
    with Tracker(Folder(tmp_path), NO_WANDB, "sft", "x", {}) as tracker, pytest.raises(Fault, match=name):
        tracker.log(1, {name: 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_step_that_goes_back_is_a_fault(tmp_path: Path) -> None:
    with Tracker(Folder(tmp_path), NO_WANDB, "sft", "x", {}) as tracker:
        tracker.log(5, {"train/loss": 1.0})
        with pytest.raises(Fault, match="step 4 was logged after step 5"):
            tracker.log(4, {"train/loss": 1.0})


def test_a_half_written_last_line_is_cleared_by_a_resume(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with Tracker(folder, NO_WANDB, "sft", "x", {}) as tracker:
        for step in (1, 2):
            tracker.log(step, {"train/loss": 0.1})
    with folder.metrics_path.open("a") as file:
        file.write('{"global_step": 3, "train/lo')
    assert [row["global_step"] for row in read_metrics(folder.metrics_path)] == [1, 2]
    with Tracker(folder, NO_WANDB, "sft", "x", {}, resume_step=2) as tracker:
        tracker.log(3, {"train/loss": 0.3})
    assert [row["train/loss"] for row in read_metrics(folder.metrics_path)] == [0.1, 0.1, 0.3]
    folder.metrics_path.write_text('{"global_step": 1}\nnot json\n{"global_step": 2}\n')
    with pytest.raises(Fault, match="line 2"):
        read_metrics(folder.metrics_path)


def test_a_fresh_start_forgets_an_attempt_without_checkpoint(tmp_path: Path) -> None:
    for _ in range(2):
        with Tracker(Folder(tmp_path), NO_WANDB, "sft", "x", {}) as tracker:
            tracker.log(0, {"eval/loss": 2.0}, [sample(0)])
            tracker.log(1, {"train/loss": 1.0}, [sample(0, reward_version=3)])
    assert [row["global_step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
    with Tracker(Folder(tmp_path), NO_WANDB, "sft", "x", {}, resume_step=0, replay="forget"):
        pass
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000000.parquet"]


def test_a_step_that_is_run_again_must_give_the_same_numbers(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with Tracker(folder, NO_WANDB, "sft", "x", {}) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"train/loss": step / 10, "perf/tokens_per_second": 5.0, "timing_s/step": 1.0})
            if step == 2:
                tracker.confirmed(2)
        tracker.log(3, {"train/loss": 0.3, "perf/tokens_per_second": 7.0, "timing_s/step": 2.0})
        with pytest.raises(Fault, match=r"Step 3 was run again .* train/loss is 0.31 and was 0.3 \(1 of 1 numbers"):
            tracker.log(3, {"train/loss": 0.31})
    with Tracker(folder, NO_WANDB, "sft", "x", {}, resume_step=1, replay="note") as tracker:
        tracker.log(2, {"train/loss": 0.2})
        tracker.log(3, {"train/loss": 0.31})
        assert tracker.replay_differences == 1
        tracker.log(4, {"train/loss": 0.4})
    rows = read_metrics(folder.metrics_path)
    assert [(row["global_step"], row["train/loss"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert rows[-1]["system/replay_differences"] == 1


def test_a_metrics_file_that_is_removed_comes_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with Tracker(folder, NO_WANDB, "sft", "x", {}) as tracker:
        tracker.log(1, {"train/loss": 0.1})
        folder.metrics_path.unlink()
        tracker.log(2, {"train/loss": 0.2})
    assert [row["global_step"] for row in read_metrics(folder.metrics_path)] == [2]


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without a W&B key; the netrc file that it names, which does not exist yet."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_login_by_netrc_is_a_key(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_mode(TrackingSettings()) == "offline"
    no_key.write_text(f"machine api.wandb.ai login user password {'1' * 40}\n")
    assert wandb_mode(TrackingSettings()) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode(TrackingSettings()) == "offline"


def test_project_of_the_settings_comes_before_the_environment(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_project(TrackingSettings()) == "quadriga"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert wandb_project(TrackingSettings()) == "mine"
    assert wandb_project(TrackingSettings(project="other")) == "other"
