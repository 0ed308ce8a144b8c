"""A run directory survives a kill at any moment and never holds a secret."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from quadriga.data import rundir
from quadriga.data.atomic_files import publish, recover, write_json_atomic
from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir
from quadriga.data.secrets import without_secrets


def test_layout(tmp_path):
    run = RunDir.create(tmp_path / "runs/a")
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "export", "logs", "samples"]
    assert run.config_path.name == "config.yaml" and run.metrics_path.name == "metrics.jsonl"
    for step in (10, 9, 100):
        run.checkpoint_dir(step).mkdir()
    (run.checkpoints_dir / "step-11.tmp").mkdir()
    assert run.checkpoint_steps() == [9, 10, 100]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.create(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.create("/proc/quadriga")


def test_run_json_keeps_attempts(tmp_path):
    run = RunDir.create(tmp_path)
    assert run.read_run() == {}
    assert run.start_attempt({"torch": "2.13.0"}) == 1
    run.end_attempt("failed", "worker 1 died")
    assert run.start_attempt({"torch": "2.14.0"}) == 2
    run.update_run(policy_version=7)
    run.end_attempt("finished")
    told = json.loads(run.run_json.read_text())
    assert (told["status"], told["policy_version"]) == ("finished", 7)
    assert [(a["status"], a["error"], a["versions"]["torch"]) for a in told["attempts"]] == [
        ("failed", "worker 1 died", "2.13.0"),
        ("finished", None, "2.14.0"),
    ]
    assert all(attempt["started"] <= attempt["ended"] for attempt in told["attempts"])
    run.run_json.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        run.read_run()


def test_secrets_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    run = RunDir.create(tmp_path)
    config = {
        "max_tokens": 8,
        "train_tokens": 9,
        "tokenizer": "t",
        "pad_token": "<pad>",
        "token": "s3cret-value",
        "nested": [{"api_key": "s3cret-value", "wandb_api_key": "s3cret-value", "DB_PASSWORD": "s3cret-value"}],
        "hf_token": "s3cret-value",
        "url": "https://me:s3cret-value@host/x?y=0123456789abcdef",
    }
    run.write_config(config)
    text = run.config_path.read_text()
    assert "s3cret" not in text and "0123456789abcdef" not in text
    assert yaml.safe_load(text) == {
        "max_tokens": 8,
        "train_tokens": 9,
        "tokenizer": "t",
        "pad_token": "<pad>",
        "nested": [{}],
        "url": "https://***@host/x?y=$SOME_API_KEY",
    }
    run.start_attempt({})
    run.end_attempt("failed", "GET ?key=0123456789abcdef said no")
    assert "0123456789abcdef" not in run.run_json.read_text()
    assert without_secrets({"password": None}) == {"password": None}


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rundir.os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def _folder(path, text):
    (path / "sub").mkdir(parents=True)
    (path / "sub/data").write_text(text)
    return path


def test_publish_replaces_a_folder(tmp_path):
    for text in ("one", "two"):
        publish(_folder(tmp_path / "policy.tmp", text), tmp_path / "policy")
        assert (tmp_path / "policy/sub/data").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    with pytest.raises(ValueError, match="not in the same folder"):
        publish(tmp_path / "policy", tmp_path / "x/policy")


def test_opening_a_run_removes_what_was_left_unfinished(tmp_path):
    run = RunDir.create(tmp_path)
    _folder(run.checkpoints_dir / ".step-3.tmp", "half")
    (run.export_dir / ".rankings.jsonl.7.tmp").write_text("half")
    _folder(run.export_dir / "policy.old", "whole")
    RunDir.create(tmp_path)
    assert [path.name for path in run.checkpoints_dir.iterdir()] == []
    assert [path.name for path in run.export_dir.iterdir()] == ["policy"]


KILLED = """
import os, pathlib, sys
from quadriga.data.atomic_files import publish
calls = int(sys.argv[2])
def counted(real):
    def call(*arguments):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), 9)
        return real(*arguments)
    return call
pathlib.Path.rename = counted(pathlib.Path.rename)
os.fsync = counted(os.fsync)
root = pathlib.Path(sys.argv[1])
publish(root / "policy.tmp", root / "policy")
"""


@pytest.mark.parametrize("calls", range(8))
def test_a_kill_at_any_call_leaves_the_old_folder_or_the_new(tmp_path, calls):
    """The process really dies by SIGKILL at its n-th fsync or rename; the folder is then one of the two, whole."""
    publish(_folder(tmp_path / "policy.tmp", "old"), tmp_path / "policy")
    _folder(tmp_path / "policy.tmp", "new")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(calls)], env=os.environ, check=False)
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert done.returncode == (-9 if calls < 6 else 0)  # 3 fsyncs, 2 renames, 1 fsync
    assert (tmp_path / "policy/sub/data").read_text() == ("old" if calls < 5 else "new")


def test_an_attempt_without_an_end_was_lost(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.start_attempt({"torch": "2"})
    run.start_attempt({"torch": "2"})
    run.end_attempt("finished")
    attempts = run.read_run()["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["lost", "finished"]
    assert "killed" in attempts[0]["error"]
    (event,) = run.events()
    assert (event["event"], event["attempt"]) == ("driver_lost", 1) and event["time"]


def test_events_of_several_threads_are_all_kept(tmp_path):
    run = RunDir.create(tmp_path / "run")
    threads = [threading.Thread(target=run.note, args=(f"e{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["event"] for event in run.events()) == sorted(f"e{number}" for number in range(20))


def test_one_process_at_a_time_has_the_directory(tmp_path):
    run = RunDir.create(tmp_path / "run")
    program = (
        "import sys, time; from quadriga.data.rundir import RunDir\n"
        "with RunDir(sys.argv[1]).locked(): print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "mine\n"
    with pytest.raises(UserError, match=f"in use by process {other.pid} on "), run.locked():
        pass
    other.kill()
    other.wait()
    with run.locked():  # the lock goes with its process
        pass


def test_a_request_reaches_the_run_and_the_stages_of_a_pipeline(tmp_path: Path) -> None:
    pipeline, stage = RunDir.create(tmp_path / "p"), RunDir.create(tmp_path / "p" / "round-1" / "ppo")
    alone = RunDir.create(tmp_path / "p" / "other" / "ppo")
    pipeline.request("stop")
    assert pipeline.requested("stop") is True and stage.requested("stop") is True and alone.requested("stop") is None
    stage.request("rollout", 3)
    assert stage.requested("rollout") == 3 and pipeline.requested("rollout") is None
    stage.start_attempt({})
    assert stage.requested("stop") is True  # the pipeline was asked, not this stage
    pipeline.start_attempt({})
    assert stage.requested("stop") is None and stage.requested("rollout") == 3
    stage.clear_request("rollout")
    stage.clear_request("rollout")
    assert stage.requested("rollout") is None
