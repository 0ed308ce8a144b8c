"""Requests to running runs: a clean stop, here or through a job, and the number of rollout workers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quadriga.data.errors import Fault
from quadriga.data.rundir import RunDir
from quadriga.launch.cli.app import main
from quadriga.launch.jobs import client as jobs
from quadriga.launch.jobs import control

MakeJob = Callable[..., Any]


def test_a_stop_is_requested_by_a_job_with_the_same_code(job: MakeJob, server: Any) -> None:
    running, ended = job("tune-1", "RUNNING", None, run="tune"), job("tune-1", "FAILED", 130, run="tune")
    cluster = server(after=[running, running, ended])
    assert control.stop_job(cluster, running) is ended
    (requester,) = cluster.submitted
    assert requester["entrypoint"] == "python -m quadriga.launch.jobs.control /shared/run"
    assert requester["runtime_env"] == {"py_modules": ["gcs://code.zip"]}
    assert cluster.stopped == [requester["submission_id"]]  # and never the run itself


def test_a_request_that_fails_is_a_fault(job: MakeJob, server: Any) -> None:
    running = job("tune-1", "RUNNING", None, run="tune")
    with pytest.raises(Fault, match="could not be asked to stop: Permission denied"):
        control.stop_job(server(after=[running], requester_status="FAILED"), running)


def test_a_job_that_has_not_started_is_removed(job: MakeJob, server: Any) -> None:
    pending = job("tune-1", "PENDING", None, run="tune")
    cluster = server(after=[pending, job("tune-1", "STOPPED", None, run="tune")])
    assert jobs.state(control.stop_job(cluster, pending)) == "interrupted"
    assert cluster.stopped == ["tune-1"]
    assert not cluster.submitted


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


def test_stop_waits_for_a_run_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"running\n"
    assert RunDir(tmp_path).in_use()
    assert main(["stop", str(tmp_path)]) == 0
    assert holder.wait(timeout=10) == 0
    assert "is interrupted" in " ".join(capsys.readouterr().err.split())


def test_a_request_reaches_a_run_that_starts_later(tmp_path: Path) -> None:
    """An attempt deletes earlier requests when it starts, so the requester repeats its own."""
    RunDir.create(tmp_path).request("stop")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.DEVNULL)
    requester = subprocess.run([sys.executable, "-m", "quadriga.launch.jobs.control", str(tmp_path)], timeout=60)
    assert requester.returncode == 0
    assert holder.wait(timeout=10) == 0
    assert RunDir(tmp_path).read_run()["status"] == "interrupted"


def test_stop_refuses_a_run_that_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize(("status", "fails"), [("SUCCEEDED", False), ("FAILED", True)])
def test_scale_requests_workers_through_a_job(job: MakeJob, server: Any, status: str, fails: bool) -> None:
    cluster = server(requester_status=status)
    if fails:
        with pytest.raises(Fault, match="Permission denied"):
            control.scale_job(cluster, job("tune-1", "RUNNING", None, run="tune"), 3)
    else:
        control.scale_job(cluster, job("tune-1", "RUNNING", None, run="tune"), 3)
    (requester,) = cluster.submitted
    assert requester["entrypoint"] == "python -m quadriga.launch scale /shared/run rollout=3"
