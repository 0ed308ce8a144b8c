"""What is handed to a batch system: files that no later launch changes, and the one command that submits them."""

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.config.load import resolved


def config_text(stage: Any, run_dir: Path) -> str:
    """The resolved config as YAML, its run directory given in full: edits of the file it came from change nothing."""
    return yaml.safe_dump(resolved(stage) | {"run_dir": str(run_dir)}, sort_keys=False, allow_unicode=True)


def run_dir(stage: Any) -> Path:
    """Where the run goes by its own account, relative perhaps."""
    return Path(stage.run_dir or f"runs/{stage.name}").expanduser()


def job_name(stage: Any, longest: int) -> str:
    """The run's name with nothing in it that a batch system could mistake: a-z, 0-9 and inner dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", stage.name.lower()).strip("-")
    return plain[:longest].rstrip("-") or "quadriga"


def fingerprint(*texts: str) -> str:
    """Eight hexadecimal digits that tell other texts apart."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def submit(
    console: Console, files: Mapping[str, str], folder: Path, command: Sequence[str], dry_run: bool, instead: str
) -> int:
    """Write the files into the folder and run the command, or print both; returns the exit code.

    instead: what to do where the command is not installed. Raises UserError when it is not, or fails.
    """
    if dry_run:
        for name, text in files.items():
            console.print(f"{folder / name}:", style="bold", markup=False, highlight=False, soft_wrap=True)
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print("Would run: " + shlex.join(command), markup=False, highlight=False, soft_wrap=True)
        return 0
    if shutil.which(command[0]) is None:
        raise UserError(
            f"`{command[0]}` is not installed on this machine. {instead}, or see with --dry-run what it is."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise UserError(f"`{shlex.join(command)}` failed: {said}")
    console.print(done.stdout.strip(), markup=False, highlight=False, soft_wrap=True)
    return 0
