"""Jobs of Ray's job server: which of them are attempts at a run, their status, and errors of the connection."""

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quadriga.data.errors import Unreachable, UserError
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


def test_a_cluster_that_is_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dashboard refuses connections first, then has no agent for jobs, and then takes one."""
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    answers = [
        (500, b"No available agent to submit job, please try again later."),
        (500, b"No available agent to submit job, please try again later."),
        (200, b'{"job_id": "tune-1", "submission_id": "tune-1"}'),
    ]
    orders = []

    class Dashboard(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(200, b'{"version": "4", "ray_version": "2.99.0"}')

        def do_POST(self) -> None:
            orders.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*answers[len(orders) - 1])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard, bind_and_activate=False)
    server.server_bind()
    address = f"http://127.0.0.1:{server.server_port}"
    refused = threading.Event()
    connect = jobs.connect

    def seen(address: str) -> Any:
        try:
            return connect(address)
        except Unreachable:
            refused.set()
            raise

    def start() -> None:
        refused.wait()
        server.server_activate()
        server.serve_forever()

    monkeypatch.setattr(jobs, "connect", seen)
    serving = threading.Thread(target=start)
    serving.start()
    client = jobs.await_server(address)
    assert client.submit_job(entrypoint="true", submission_id="tune-1") == "tune-1"
    server.shutdown()
    serving.join()
    server.server_close()
    assert len(orders) == 3
    assert len(set(orders)) == 1


def test_a_cluster_that_never_starts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "START_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    with pytest.raises(Unreachable, match=re.escape("No Ray job server answers at http://127.0.0.1:9")):
        jobs.await_server("http://127.0.0.1:9")
