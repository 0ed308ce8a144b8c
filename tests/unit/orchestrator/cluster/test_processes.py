"""How a run's own Ray is started, whatever else is on the machine."""

import os
import tempfile
from pathlib import Path

import pytest

from quadriga.orchestrator.cluster.processes import LONGEST_TMPDIR, own_ray


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that what is set in a test is unset again
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_it_never_joins_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert own_ray() == {"address": "local"}


@pytest.mark.parametrize("folder", ["/tmp/" + "d" * LONGEST_TMPDIR, "/tmp/a b"])
def test_sockets_have_a_short_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", folder)
    own_ray()
    short = os.environ["TMPDIR"]
    assert os.environ["RAY_TMPDIR"] == tempfile.gettempdir() == short
    assert len(short) < LONGEST_TMPDIR
    assert Path(short).stat().st_mode & 0o777 == 0o700


def test_token_of_its_own_where_home_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    own_ray()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/proc/nohome")
    own_ray()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
