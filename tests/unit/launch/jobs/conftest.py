"""Fake of Ray's job server: a list of jobs, and a record of what was submitted and stopped."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


def make_job(name: str, status: str = "SUCCEEDED", code: int | None = 0, began: int = 0, run: str | None = None) -> Any:
    """Return the details of a job as Ray gives them. run: name of its run, for a job of Quadriga."""
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
    """Status of a job. Ray's own is an enumeration of strings."""

    @property
    def value(self) -> str:
        return str(self)


class Server:
    """Job server without a cluster.

    known: jobs that it lists. after: successive details of a job that is polled; the last of them is repeated.
    requester_status: status of the job that delivers a request.
    """

    def __init__(self, *known: Any, after: list[Any] | None = None, requester_status: str = "RUNNING"):
        self.known, self.after, self.requester_status = list(known), after or [], requester_status
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
        return self.requester_status

    def get_job_logs(self, name: str) -> str:
        return "Permission denied"


@pytest.fixture
def job() -> Callable[..., Any]:
    return make_job


@pytest.fixture
def server() -> type[Server]:
    return Server
