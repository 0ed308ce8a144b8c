"""Contents of a job: Quadriga itself, the resolved config, and the files of this machine that the config names."""

import glob
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError
from quadriga.data.tokens.named_templates import NAMED_TEMPLATES
from quadriga.launch.config.document import write_yaml
from quadriga.launch.config.load import resolved
from quadriga.orchestrator.stages.registry import AnyStage

CONFIG = "quadriga-job/config.yaml"
"""Path of the config in the job's working directory."""
INPUTS = "quadriga-job/inputs"
"""Folder of the input files in the job's working directory; `launch/job_main.py` copies it to the run directory."""
MAX_BYTES = 100 << 20
"""Largest total size of a job's files. Ray keeps them in the head's memory and sends them to every node."""
LISTED_FILES = 5
"""Number of the largest files that the error about their total size names."""

PATHS = ("path", "chat_template", "train", "heldout", "earlier_rankings")
"""Keys of a config whose values are a path or a list of paths."""
SKIPPED_SECTIONS = ("cluster", "inputs")
"""Sections without paths of this machine: theirs are on the cluster, or outputs of an earlier stage."""


@dataclass(frozen=True)
class Staged:
    """Folders of a job for Ray's `runtime_env`."""

    py_modules: list[str]
    working_dir: str


def stage_job(
    stage: AnyStage, folder: Path, working_dir: Path | None = None, shared: Sequence[Path] = (), limit: int = MAX_BYTES
) -> Staged:
    """Write the files of a job for this validated stage into `folder`.

    working_dir: the user's own modules, copied to the directory in which the run starts. shared: folders that the
    nodes see too, whose files are not sent. limit: largest total size of all files but Quadriga's own, in bytes.
    Raises UserError when the files are larger.
    """
    assert stage.run_dir is not None
    inputs = Inputs([*shared, Path(stage.run_dir)], inputs_of(Path(stage.run_dir)))
    config = on_cluster(resolved(stage))
    _rewrite(config, inputs)
    files = inputs.files if working_dir is None else _files_below(working_dir, "") | inputs.files
    _require_small(files, limit)
    target = folder / "working_dir"
    for name, file in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
    (target / CONFIG).parent.mkdir(parents=True, exist_ok=True)
    write_yaml(target / CONFIG, config)
    return Staged(stage_package(folder / "py_modules"), str(target))


def stage_package(folder: Path) -> list[str]:
    """Copy the installed Quadriga and its metadata for Ray's `py_modules`, and return the two folders.

    A wheel does not work: Ray caches wheels by file name, and would run an older build of the same version.
    """
    root = Path(__file__).resolve().parents[2]
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for package in [*(file.parent for file in root.glob("*/__init__.py")), root / "configs"]:
        shutil.copytree(package, folder / "quadriga" / package.name, ignore=skip)
    about = distribution("quadriga")
    metadata = folder / f"quadriga-{about.version}.dist-info"  # the run reads its version from it
    metadata.mkdir()
    text = about.read_text("METADATA") or about.read_text("PKG-INFO") or ""  # installed, or beside a checkout
    (metadata / "METADATA").write_text(text, encoding="utf-8")
    return [str(folder / "quadriga"), str(metadata)]


def on_cluster(config: dict[str, Any]) -> dict[str, Any]:
    """Change a resolved config so that its run, inside a Ray job, joins the job's cluster; return it."""
    configs = [config, *(entry["config"] for part in ("stages", "repeat") for entry in config.get(part, []))]
    for each in configs:
        each["cluster"] = each.get("cluster", {}) | {"address": "auto", "ssh": None, "slurm": None, "kubernetes": None}
    return config


def inputs_of(run_dir: Path) -> Path:
    """Return the folder of a job's input files that all nodes see; only the driver sees its working directory."""
    return run_dir / "inputs"


class Inputs:
    """Input files that a job brings from this machine.

    files: file on this machine per path in the job. Each path of the config gets its own folder, named after a hash of
    the path, so that its place does not depend on the others: a run that is submitted again must find its config
    unchanged.
    """

    def __init__(self, shared: Iterable[Path], home: Path):
        """shared: folders whose files are not sent. home: folder in which the run finds the files."""
        self.files: dict[str, Path] = {}
        self._home = home
        self._shared = [path.expanduser().absolute() for path in shared]
        self._places: dict[str, str] = {}

    def place(self, written: str) -> str:
        """Return the run's path of a file, folder or glob. Return it unchanged when this machine does not have it."""
        if written not in self._places:
            self._places[written] = self._add(written, sha256(written.encode()).hexdigest()[:8])
        return self._places[written]

    def _add(self, written: str, digest: str) -> str:
        path = Path(os.path.abspath(Path(written).expanduser()))
        if any(path.is_relative_to(folder) for folder in self._shared):
            return str(path)
        if path.exists():
            self.files |= _files_below(path, f"{INPUTS}/{digest}/{path.name}")
            return str(self._home / digest / path.name)
        fixed = next(above for above in path.parents if not glob.has_magic(str(above)))
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        for file in found:
            self.files |= _files_below(file, f"{INPUTS}/{digest}/{file.relative_to(fixed)}")
        return str(self._home / digest / path.relative_to(fixed)) if found else written


def _rewrite(value: Any, inputs: Inputs) -> None:
    """Replace every path in a section of the config by its path for the run."""
    if isinstance(value, list):
        for item in value:
            _rewrite(item, inputs)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "chat_template" and item in NAMED_TEMPLATES:
            continue
        if key in PATHS and isinstance(item, str):
            value[key] = inputs.place(item)
        elif key in PATHS and isinstance(item, list) and all(isinstance(each, str) for each in item):
            value[key] = [inputs.place(each) for each in item]
        elif key not in SKIPPED_SECTIONS:
            _rewrite(item, inputs)


def _files_below(path: Path, place: str) -> dict[str, Path]:
    """Return the file per path in the job. Leave out names that start with a dot (.git, .env), and caches."""
    if path.is_file():
        return {place: path}
    above = f"{place}/" if place else ""
    return {f"{above}{name}": path / name for name in _names(path)}


def _names(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            yield str(Path(*parts))


def _require_small(files: dict[str, Path], limit: int) -> None:
    sizes = {file: file.stat().st_size for file in files.values()}
    if sum(sizes.values()) <= limit:
        return
    largest = sorted(sizes, key=lambda file: -sizes[file])[:LISTED_FILES]
    named = ", ".join(f"{file} ({_megabytes(sizes[file])})" for file in largest)
    raise UserError(
        f"The files on this machine that the run needs are {_megabytes(sum(sizes.values()))}, and a job brings at most "
        f"{_megabytes(limit)}. The largest are {named}. Put them on storage that every node sees. If they are there "
        "already, name that folder with --shared, and they are not sent."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
