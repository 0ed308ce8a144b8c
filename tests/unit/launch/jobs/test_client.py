"""Jobs of Ray's job server: which of them are attempts at a run, their status, and errors of the connection."""

from collections.abc import Callable
from typing import Any

import pytest

from quadriga.data.errors import UserError
from quadriga.launch.cli.app import main
from quadriga.launch.jobs import client as jobs

MakeJob = Callable[..., Any]


def test_attempts_are_the_jobs_of_a_run(job: MakeJob, server: Any) -> None:
    cluster = server(
        job("tune-2", began=7, run="tune"),
        job("raysubmit_x"),
        job("tune-1", began=3, run="tune"),
        job("ppo-9", run="ppo"),
    )
    assert [each.submission_id for each in jobs.attempts(cluster, "tune")] == ["tune-1", "tune-2"]
    assert jobs.newest(cluster, "tune").submission_id == "tune-2"
    with pytest.raises(UserError, match="no run `tun` on the cluster at http://head:8265: it has ppo, tune"):
        jobs.newest(cluster, "tun")


def test_attempts_are_numbered(job: MakeJob, server: Any) -> None:
    """Numbers compare as integers; neither a job that requested a stop nor a run with a longer name counts."""
    known = [job(name) for name in ("tune-9", "tune-10", "tune-10-stop-abc", "tune-b-12", "tune.2-30")]
    assert jobs.next_id(server(*known), "tune") == "tune-11"
    assert jobs.next_id(server(), "tune") == "tune-1"


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
def test_the_status_is_in_terms_of_runs(job: MakeJob, status: str, code: int | None, expected: str) -> None:
    assert jobs.state(job("tune-1", status, code)) == expected


def test_an_unreachable_server_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A given address takes precedence over Ray's variables, and these over the default."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert main(["jobs"]) == 2
    assert "No Ray job server answers at http://127.0.0.1:9." in " ".join(capsys.readouterr().err.split())
    assert main(["jobs", "--address", "http://127.0.0.1:7"]) == 2
    assert "No Ray job server answers at http://127.0.0.1:7." in " ".join(capsys.readouterr().err.split())
