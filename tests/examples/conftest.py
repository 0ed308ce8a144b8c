"""The examples run as docs/examples.md says, in a folder that looks like the clone's root, the corpora in it."""

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.corpora import CORPORA

from quadriga.launch.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/examples.md"


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """configs/ and corpora/ as links, and room for runs/."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "corpora").symlink_to(CORPORA.resolve())
    return folder


@pytest.fixture
def in_clone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test that writes runs/."""
    monkeypatch.chdir(clone)
    return clone


Command = Callable[..., None]


@pytest.fixture
def documented(in_clone: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that stands on the page word by word, and overrides; fails unless it exits with `code`."""

    def execute(command: str, *overrides: str, code: int = 0) -> None:
        assert command in commands(), f"{PAGE.name} does not show: {command}"
        words = [*shlex.split(command), *overrides]
        if words[:2] == ["python", "-m"]:
            import subprocess

            done = subprocess.run([sys.executable, *words[1:]], env=os.environ, capture_output=True, text=True)
            assert done.returncode == code, done.stderr
        else:
            assert words[0] == "quadriga"
            assert main(words[1:]) == code, capfd.readouterr()

    return execute


def commands() -> list[str]:
    """The command lines in the page's code blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("quadriga ", "python -m "))]


@pytest.fixture
def page_commands() -> list[str]:
    """All that the page shows."""
    return commands()
