"""Submission of runs as jobs: what is sent to the cluster, and which runs are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quadriga.data.errors import UserError
from quadriga.launch.jobs.submit import DriverResources, JobPackage, submit

MakeJob = Callable[..., Any]
Write = Callable[..., Path]


def test_the_request_to_the_job_server(
    sft: dict[str, Any], write: Write, job: MakeJob, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    cluster = server(job("tune-1", "FAILED", 1, run="tune"))
    package = JobPackage(environment=["WANDB_MODE"], secrets=["WANDB_API_KEY"], secrets_file=Path("/etc/my secrets"))
    changes = ["run_dir=/shared/runs/tune", "total_steps=7"]
    assert submit(cluster, write(sft), changes, package, DriverResources(cpus=1), ["total_steps"]) == "tune-2"
    (sent,) = cluster.submitted
    assert sent["entrypoint"] == (
        "python -m quadriga.launch.job_main /shared/runs/tune --allow-changed=total_steps --secret=WANDB_API_KEY "
        "'--secrets-file=/etc/my secrets'"
    )
    assert sent["metadata"] == {"quadriga_run": "tune", "run_dir": "/shared/runs/tune"}
    assert sent["runtime_env"]["env_vars"] == {"WANDB_MODE": "offline"}
    assert sent["entrypoint_num_cpus"] == 1


@pytest.mark.parametrize("run_dir", [None, "runs/tune"])
def test_a_relative_run_directory_is_refused(
    sft: dict[str, Any], write: Write, server: Any, run_dir: str | None
) -> None:
    with pytest.raises(UserError, match="storage that every node sees, for example run_dir=/shared/runs/tune"):
        submit(server(), write(sft | {"run_dir": run_dir}))


def test_the_name_of_a_running_run_is_refused(sft: dict[str, Any], write: Write, job: MakeJob, server: Any) -> None:
    cluster = server(job("tune-4", "PENDING", None, run="tune"))
    with pytest.raises(UserError, match="`tune` is pending as job tune-4: stop it with `quadriga stop tune`"):
        submit(cluster, write(sft | {"run_dir": "/shared/tune"}))


def test_a_secrets_file_without_secrets_is_refused(sft: dict[str, Any], write: Write, server: Any) -> None:
    package = JobPackage(secrets_file=Path("/etc/secrets"))
    with pytest.raises(UserError, match="give at least one --secret NAME"):
        submit(server(), write(sft | {"run_dir": "/shared/tune"}), package=package)
