"""Runs as jobs: which job is which attempt, what may be submitted, and how a run is stopped."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.cli.app import main
from quadriga.launch.jobs import client as jobs
from quadriga.launch.jobs import stop as stopping
from quadriga.launch.jobs.submit import DriverResources, JobPackage, submit

Write = Callable[..., Path]


def job(name: str, status: str = "SUCCEEDED", code: int | None = 0, began: int = 0, run: str | None = None) -> Any:
    """What Ray tells of a job. run: of a job of ours."""
    return SimpleNamespace(
        submission_id=name,
        entrypoint="python -m quadriga.launch.job_main /shared/runs/tune",
        status=Status(status),
        driver_exit_code=code,
        start_time=began,
        end_time=None,
        metadata={"quadriga_run": run, "run_dir": "/shared/run"} if run else {},
        runtime_env={"py_modules": ["gcs://code.zip"], "working_dir": "gcs://dir.zip"},
    )


class Status(str):
    """Ray's is an enumeration of texts."""

    @property
    def value(self) -> str:
        return str(self)


class Server:
    """A job server. after: how the newest job stands whenever it is asked for, the last of them for ever."""

    def __init__(self, *known: Any, after: list[Any] | None = None, asking: str = "RUNNING"):
        self.known, self.after, self.asking = list(known), after or [], asking
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[Any]:
        return self.known

    def submit_job(self, **job: Any) -> str:
        self.submitted.append(job)
        return str(job["submission_id"])

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)

    def get_job_info(self, name: str) -> Any:
        return self.after.pop(0) if len(self.after) > 1 else self.after[0]

    def get_job_status(self, name: str) -> str:
        return self.asking

    def get_job_logs(self, name: str) -> str:
        return "Permission denied"


def test_attempts_are_told_from_other_jobs() -> None:
    server = Server(
        job("tune-2", began=7, run="tune"),
        job("raysubmit_x"),
        job("tune-1", began=3, run="tune"),
        job("ppo-9", run="ppo"),
    )
    assert [each.submission_id for each in jobs.attempts(server, "tune")] == ["tune-1", "tune-2"]
    assert jobs.newest(server, "tune").submission_id == "tune-2"
    with pytest.raises(UserError, match="no run `tun` on the cluster at http://head:8265: it has ppo, tune"):
        jobs.newest(server, "tun")


def test_a_new_attempt_has_a_number_of_its_own() -> None:
    """Numbers are compared as numbers; a job that asked for a stop and a run with a longer name do not count."""
    known = [job(name) for name in ("tune-9", "tune-10", "tune-10-stop-abc", "tune-b-12", "tune.2-30")]
    assert jobs.next_id(Server(*known), "tune") == "tune-11"
    assert jobs.next_id(Server(), "tune") == "tune-1"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, "finished"),
        ("FAILED", 130, "interrupted"),
        ("STOPPED", None, "interrupted"),
        ("FAILED", 1, "failed"),
        ("FAILED", None, "failed"),
        ("PENDING", None, "pending"),
    ],
)
def test_jobs_are_told_in_the_words_of_runs(status: str, code: int | None, expected: str) -> None:
    assert jobs.state(job("tune-1", status, code)) == expected


def test_what_is_submitted(sft: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    server = Server(job("tune-1", "FAILED", 1, run="tune"))
    package = JobPackage(environment=["WANDB_MODE"], secrets=["WANDB_API_KEY"], secrets_file=Path("/etc/my secrets"))
    changes = ["run_dir=/shared/runs/tune", "total_steps=7"]
    assert submit(server, write(sft), changes, package, DriverResources(cpus=1), ["total_steps"]) == "tune-2"
    (sent,) = server.submitted
    assert sent["entrypoint"] == (
        "python -m quadriga.launch.job_main /shared/runs/tune --allow-changed=total_steps --secret=WANDB_API_KEY "
        "'--secrets-file=/etc/my secrets'"
    )
    assert sent["metadata"] == {"quadriga_run": "tune", "run_dir": "/shared/runs/tune"}
    assert sent["runtime_env"]["env_vars"] == {"WANDB_MODE": "offline"}
    assert sent["entrypoint_num_cpus"] == 1


@pytest.mark.parametrize("run_dir", [None, "runs/tune"])
def test_a_run_directory_that_only_one_machine_has_is_refused(
    sft: dict[str, Any], write: Write, run_dir: str | None
) -> None:
    with pytest.raises(UserError, match="storage that every node sees, for example run_dir=/shared/runs/tune"):
        submit(Server(), write(sft | {"run_dir": run_dir}))


def test_a_running_name_is_refused(sft: dict[str, Any], write: Write) -> None:
    server = Server(job("tune-4", "PENDING", None, run="tune"))
    with pytest.raises(UserError, match="`tune` is pending as job tune-4: stop it with `quadriga stop tune`"):
        submit(server, write(sft | {"run_dir": "/shared/tune"}))


def test_a_secrets_file_alone_would_do_nothing(sft: dict[str, Any], write: Write) -> None:
    with pytest.raises(UserError, match="give at least one --secret NAME"):
        submit(
            Server(), write(sft | {"run_dir": "/shared/tune"}), package=JobPackage(secrets_file=Path("/etc/secrets"))
        )


def test_stopping_asks_by_a_job_with_the_same_code() -> None:
    running, ended = job("tune-1", "RUNNING", None, run="tune"), job("tune-1", "FAILED", 130, run="tune")
    server = Server(after=[running, running, ended])
    assert stopping.stop_job(server, running) is ended
    (asking,) = server.submitted
    assert asking["entrypoint"] == "python -m quadriga.launch.jobs.stop /shared/run"
    assert asking["runtime_env"] == {"py_modules": ["gcs://code.zip"]}
    assert server.stopped == [asking["submission_id"]]  # and never the run itself


def test_a_request_that_fails_is_told() -> None:
    running = job("tune-1", "RUNNING", None, run="tune")
    with pytest.raises(Fault, match="could not be asked to stop: Permission denied"):
        stopping.stop_job(Server(after=[running], asking="FAILED"), running)


def test_a_job_that_has_not_begun_is_removed() -> None:
    pending = job("tune-1", "PENDING", None, run="tune")
    server = Server(after=[pending, job("tune-1", "STOPPED", None, run="tune")])
    assert jobs.state(stopping.stop_job(server, pending)) == "interrupted"
    assert server.stopped == ["tune-1"] and not server.submitted


HOLDER = """if True:
    import sys, time
    from quadriga.data.rundir import RunDir
    run = RunDir.create(sys.argv[1])
    with run.locked():
        run.start_attempt({})
        print("running", flush=True)
        while run.requested("stop") is None:
            time.sleep(0.05)
        run.end_attempt("interrupted")
"""


def test_a_run_on_this_machine_is_asked_and_awaited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"running\n"
    assert RunDir(tmp_path).in_use()
    assert main(["stop", str(tmp_path)]) == 0
    assert holder.wait(timeout=10) == 0
    assert "is interrupted" in " ".join(capsys.readouterr().err.split())


def test_a_request_reaches_a_run_that_only_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked before an attempt is forgotten when it begins; the one who asks sees to it."""
    RunDir.create(tmp_path).request("stop")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.DEVNULL)
    asking = subprocess.run([sys.executable, "-m", "quadriga.launch.jobs.stop", str(tmp_path)], timeout=60)
    assert asking.returncode == 0 and holder.wait(timeout=10) == 0
    assert RunDir(tmp_path).read_run()["status"] == "interrupted"


def test_stopping_what_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir.create(tmp_path)
    run.start_attempt({})
    run.end_attempt("finished")
    assert main(["stop", str(tmp_path)]) == 2
    assert "Nothing is running in" in capsys.readouterr().err


def test_a_stage_of_a_running_pipeline_is_in_use(tmp_path: Path) -> None:
    stage = RunDir.create(tmp_path / "round-0" / "sft")
    assert not stage.in_use()
    with RunDir.create(tmp_path).locked():
        assert stage.in_use()


def test_no_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The address that was given wins over Ray's variables, which win over the default."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert main(["jobs"]) == 2
    assert "No Ray job server answers at http://127.0.0.1:9." in " ".join(capsys.readouterr().err.split())
    assert main(["jobs", "--address", "http://127.0.0.1:7"]) == 2
    assert "No Ray job server answers at http://127.0.0.1:7." in " ".join(capsys.readouterr().err.split())
