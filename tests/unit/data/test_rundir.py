"""A run directory: its layout, the record of its attempts, its lock, requests to it; it never holds a secret."""

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run")


def test_layout(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs/a")
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "export", "logs", "samples"]
    assert run.config_path.name == "config.yaml"
    assert run.metrics_path.name == "metrics.jsonl"


def test_checkpoint_steps_are_in_order(run: RunDir) -> None:
    for step in (10, 9, 100):
        run.checkpoint_dir(step).mkdir()
    (run.checkpoints_dir / "step-11.tmp").mkdir()
    assert run.checkpoint_steps() == [9, 10, 100]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.create(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.create("/proc/quadriga")


def test_run_json_keeps_attempts(run: RunDir) -> None:
    assert run.read_run() == {}
    assert run.start_attempt({"torch": "2.13.0"}) == 1
    run.end_attempt("failed", "worker 1 died")
    assert run.start_attempt({"torch": "2.14.0"}) == 2
    run.update_run(policy_version=7)
    run.end_attempt("finished")
    content = json.loads(run.run_json.read_text())
    assert (content["status"], content["policy_version"]) == ("finished", 7)
    assert [(a["status"], a["error"], a["versions"]["torch"]) for a in content["attempts"]] == [
        ("failed", "worker 1 died", "2.13.0"),
        ("finished", None, "2.14.0"),
    ]
    assert all(attempt["started"] <= attempt["ended"] for attempt in content["attempts"])


def test_damaged_run_json_is_an_error(run: RunDir) -> None:
    run.run_json.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        run.read_run()


def test_config_is_written_without_secrets(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    run.write_config(
        {
            "max_tokens": 8,
            "token": "s3cret-value",
            "nested": [{"api_key": "s3cret-value"}],
            "url": "https://me:s3cret-value@host/x?y=0123456789abcdef",
        }
    )
    text = run.config_path.read_text()
    assert "s3cret" not in text
    assert "0123456789abcdef" not in text
    assert yaml.safe_load(text) == {"max_tokens": 8, "nested": [{}], "url": "https://***@host/x?y=$SOME_API_KEY"}


def test_run_json_is_written_without_secrets(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    run.start_attempt({})
    run.end_attempt("failed", "GET ?key=0123456789abcdef said no")
    assert "0123456789abcdef" not in run.run_json.read_text()
    assert run.read_run()["attempts"][0]["error"] == "GET ?key=$SOME_API_KEY said no"


def test_opening_a_run_removes_unfinished_files(run: RunDir) -> None:
    (run.checkpoints_dir / ".step-3.tmp/sub").mkdir(parents=True)
    (run.checkpoints_dir / ".step-3.tmp/sub/data").write_text("half")
    (run.export_dir / ".rankings.jsonl.7.tmp").write_text("half")
    (run.export_dir / "policy.old").mkdir()
    RunDir.create(run.path)
    assert [path.name for path in run.checkpoints_dir.iterdir()] == []
    assert [path.name for path in run.export_dir.iterdir()] == ["policy"]


def test_attempt_without_an_end_was_lost(run: RunDir) -> None:
    run.start_attempt({"torch": "2"})
    run.start_attempt({"torch": "2"})
    run.end_attempt("finished")
    attempts = run.read_run()["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["lost", "finished"]
    assert "killed" in attempts[0]["error"]
    (event,) = run.events()
    assert (event["event"], event["attempt"]) == ("driver_lost", 1)
    assert event["time"]


def test_events_of_several_threads_are_all_kept(run: RunDir) -> None:
    threads = [threading.Thread(target=run.note, args=(f"e{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["event"] for event in run.events()) == sorted(f"e{number}" for number in range(20))


def test_one_process_at_a_time_has_the_lock(run: RunDir) -> None:
    program = (
        "import sys, time; from quadriga.data.rundir import RunDir\n"
        "with RunDir(sys.argv[1]).locked(): print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout
        assert other.stdout.readline() == "mine\n"
        assert run.in_use()
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "), run.locked():
            pass
    finally:
        other.kill()
        other.wait()
    assert not run.in_use()
    with run.locked():  # the lock ends with its process
        pass


@pytest.fixture
def pipeline(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "p")


@pytest.fixture
def stage(pipeline: RunDir) -> RunDir:
    """A stage of the pipeline's first round."""
    return RunDir.create(pipeline.path / "round-1" / "ppo")


def test_request_to_a_pipeline_reaches_its_stages(pipeline: RunDir, stage: RunDir) -> None:
    unrelated = RunDir.create(pipeline.path / "other" / "ppo")
    pipeline.request("stop")
    assert pipeline.requested("stop") is True
    assert stage.requested("stop") is True
    assert unrelated.requested("stop") is None


def test_request_to_a_stage_reaches_it_alone(pipeline: RunDir, stage: RunDir) -> None:
    stage.request("rollout", 3)
    assert stage.requested("rollout") == 3
    assert pipeline.requested("rollout") is None


def test_new_attempt_clears_its_own_stop_request(pipeline: RunDir, stage: RunDir) -> None:
    pipeline.request("stop")
    stage.request("rollout", 3)
    stage.start_attempt({})
    assert stage.requested("stop") is True  # the request was made to the pipeline
    pipeline.start_attempt({})
    assert stage.requested("stop") is None
    assert stage.requested("rollout") == 3


def test_request_may_be_cleared_twice(stage: RunDir) -> None:
    stage.request("rollout", 3)
    stage.clear_request("rollout")
    stage.clear_request("rollout")
    assert stage.requested("rollout") is None


def test_storage_without_locks_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre without `-o flock`."""

    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    run = RunDir.create(tmp_path / "run")
    with run.locked():
        assert not run.in_use()
    (event,) = run.events()
    assert event["event"] == "not_locked"
    assert "has no file locks (Function not implemented)" in event["reason"]
