"""Submission of a run to a Ray cluster, as a job that needs only Quadriga's dependencies there."""

import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError
from quadriga.data.secrets import names_secret, without_secrets
from quadriga.launch.config.load import load_config
from quadriga.launch.jobs import package as staging
from quadriga.launch.jobs.client import ENDED, RUN, RUN_DIR, attempts, next_id


@dataclass(frozen=True)
class JobPackage:
    """Inputs of a job in addition to the config."""

    working_dir: Path | None = None
    """Folder of the user's own modules; the run starts in a copy of it."""
    shared: Sequence[Path] = ()
    """Folders that the nodes see too: files of the config below them are not sent."""
    environment: Sequence[str] = ()
    """Names of environment variables of this machine to send. Whoever reaches the cluster can read their values."""
    secrets: Sequence[str] = ()
    """Names of variables that must be set on the node where the driver starts; only the names leave this machine."""
    secrets_file: Path | None = None
    """File on the nodes with `NAME=value` lines, which is searched for the secrets before the environment."""
    python: str = "python"
    """Interpreter on the nodes that has Quadriga's dependencies."""


@dataclass(frozen=True)
class DriverResources:
    """Resources that Ray reserves for the driver. When all are zero, the driver starts on the head."""

    cpus: float = 0
    gpus: float = 0
    resources: dict[str, float] = field(default_factory=dict)


def submit(
    client: Any,
    config: str | Path,
    overrides: Sequence[str] = (),
    package: JobPackage = JobPackage(),
    needs: DriverResources = DriverResources(),
    allow_changed: Sequence[str] = (),
) -> str:
    """Submit the run of a config as a job and return its submission ID, `<name>-<n>`. The job outlives this process.

    client: from `client.connect`. allow_changed: as for `quadriga run`. A run whose directory exists is resumed.
    Raises UserError when the config cannot run as a job, or when a job of the same name is running.
    """
    stage = load_config(config, overrides)
    if stage.run_dir is None or not Path(stage.run_dir).is_absolute():
        raise UserError(
            f"`run_dir` is {stage.run_dir or 'not set'}: a job's own folder is deleted after it. Give an absolute path "
            "on storage that every node sees, for example run_dir=/shared/runs/" + stage.name
        )
    variables = environment(package.environment)
    if package.secrets_file is not None and not package.secrets:
        raise UserError("--secrets-file only holds the variables that --secret names: give at least one --secret NAME.")
    running = [job for job in attempts(client, stage.name) if job.status not in ENDED]
    if running:
        raise UserError(
            f"The run `{stage.name}` is {running[-1].status.value.lower()} as job {running[-1].submission_id}: stop it "
            f"with `quadriga stop {stage.name}`, or set another `name`."
        )
    with tempfile.TemporaryDirectory(prefix="quadriga-job-") as folder:
        staged = staging.stage_job(stage, Path(folder), package.working_dir, package.shared)
        return str(
            client.submit_job(
                entrypoint=_command(stage.run_dir, package, allow_changed),
                submission_id=next_id(client, stage.name),
                runtime_env={
                    "working_dir": staged.working_dir,
                    "py_modules": staged.py_modules,
                    "env_vars": variables,
                },
                metadata={RUN: stage.name, RUN_DIR: stage.run_dir},
                entrypoint_num_cpus=needs.cpus,
                entrypoint_num_gpus=needs.gpus,
                entrypoint_resources=needs.resources,
            )
        )


def environment(names: Sequence[str]) -> dict[str, str]:
    """Return the value per environment variable. Raises UserError for one that is not set or holds a secret."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"--env takes names of variables that are set here; {', '.join(missing)} is not.")
    values = {name: os.environ[name] for name in names}
    for name, value in values.items():
        if names_secret(name) or without_secrets(value) != value:
            raise UserError(
                f"{name} holds a secret, and whoever reaches the cluster can read a job's variables. Say --secret "
                f"{name} instead: it is then read on the node, from its environment or from --secrets-file."
            )
    return values


def _command(run_dir: str, package: JobPackage, allow_changed: Sequence[str]) -> str:
    command = [package.python, "-m", "quadriga.launch.job_main", run_dir]
    command += [f"--allow-changed={key}" for key in allow_changed]
    command += [f"--secret={name}" for name in package.secrets]
    command += [f"--secrets-file={package.secrets_file}"] if package.secrets_file else []
    return shlex.join(command)
