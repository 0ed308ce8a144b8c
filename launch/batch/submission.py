"""Submission to a batch system: files that no later launch changes, and the command that submits them."""

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.config.load import resolved
from quadriga.orchestrator.stages.registry import AnyStage


def config_text(stage: AnyStage, run_dir: Path) -> str:
    """Return the resolved config as YAML with this run directory: later edits of its source do not change it."""
    return yaml.safe_dump(resolved(stage) | {"run_dir": str(run_dir)}, sort_keys=False, allow_unicode=True)


def run_dir(stage: AnyStage) -> Path:
    """Return the run directory of the config, which may be relative."""
    return Path(stage.run_dir or f"runs/{stage.name}").expanduser()


def job_name(stage: AnyStage, longest: int) -> str:
    """Return the run's name reduced to a-z, 0-9 and inner dashes, with at most `longest` characters."""
    plain = re.sub(r"[^a-z0-9]+", "-", stage.name.lower()).strip("-")
    return plain[:longest].rstrip("-") or "quadriga"


def fingerprint(*texts: str) -> str:
    """Return eight hexadecimal digits that identify these texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def submit(
    console: Console, files: Mapping[str, str], folder: Path, command: Sequence[str], dry_run: bool, instead: str
) -> int:
    """Write the files into the folder and run the command, or print both for a dry run; return the exit code.

    instead: advice for a machine without the command. Raises UserError when the command is not installed or fails.
    """
    if dry_run:
        for name, text in files.items():
            console.print(f"{folder / name}:", style="bold", markup=False, highlight=False, soft_wrap=True)
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print("Would run: " + shlex.join(command), markup=False, highlight=False, soft_wrap=True)
        return 0
    if shutil.which(command[0]) is None:
        raise UserError(
            f"`{command[0]}` is not installed on this machine. {instead}, or print the files with --dry-run."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise UserError(f"`{shlex.join(command)}` failed: {reason}")
    console.print(done.stdout.strip(), markup=False, highlight=False, soft_wrap=True)
    return 0
