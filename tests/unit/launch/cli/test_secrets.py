"""Secrets of a job are read on its node by name, and never leave the client."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quadriga.data.errors import UserError
from quadriga.launch.cli.secrets import take_secrets
from quadriga.launch.jobs.submit import environment

KEY = "feedbeef" * 5


@pytest.fixture
def secrets_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with two secrets and a variable that no run needs; the environment has one of the secrets."""
    monkeypatch.setattr(os, "environ", {"HOME": "/root", "OTHER_KEY": "from the environment"})
    file = tmp_path / "secrets"
    file.write_text(f"# mine\nexport WANDB_API_KEY='{KEY}'\n\nOTHER_KEY=from=the=file\nUNASKED=1\n")
    file.chmod(0o600)
    return file


def test_the_file_wins_over_the_environment(secrets_file: Path) -> None:
    take_secrets(["WANDB_API_KEY", "OTHER_KEY"], secrets_file)
    assert (os.environ["WANDB_API_KEY"], os.environ["OTHER_KEY"]) == (KEY, "from=the=file")


def test_only_named_variables_are_taken(secrets_file: Path) -> None:
    take_secrets(["WANDB_API_KEY", "OTHER_KEY"], secrets_file)
    assert "UNASKED" not in os.environ


@pytest.mark.usefixtures("secrets_file")
def test_without_a_file_the_environment_must_have_them() -> None:
    take_secrets(["OTHER_KEY"], None)
    with pytest.raises(UserError, match="The run needs WANDB_API_KEY"):
        take_secrets(["OTHER_KEY", "WANDB_API_KEY"], None)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused(secrets_file: Path, mode: int) -> None:
    secrets_file.chmod(mode)
    with pytest.raises(UserError, match=f"mode {mode:o}.*chmod 600"):
        take_secrets(["WANDB_API_KEY"], secrets_file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read on .*No such file"):
        take_secrets(["WANDB_API_KEY"], tmp_path / "none")


def test_a_missing_secret_is_found_before_the_config_is_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quadriga.launch", "run", str(tmp_path / "none.yaml"), "--secret=NOT_SET_HERE"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "The run needs NOT_SET_HERE" in done.stderr
    assert "none.yaml" not in done.stderr


def test_variables_are_sent_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert environment(["WANDB_MODE"]) == {"WANDB_MODE": "offline"}
    with pytest.raises(UserError, match="NOT_SET_HERE is not"):
        environment(["NOT_SET_HERE"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_API_KEY", "short"),
        ("HF_TOKEN", KEY),
        ("HARMLESS", f"holds {KEY}, which is the value of a secret variable"),
        ("PROXY", "http://me:password@proxy:3128"),
    ],
)
def test_secrets_are_not_sent(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("MY_SECRET", KEY)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"Say --secret {name} instead") as caught:
        environment([name])
    assert value not in str(caught.value)
