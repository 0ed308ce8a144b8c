"""What a job brings along: Quadriga itself, the resolved config, and files of this machine that the config names."""

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
from quadriga.launch.config.document import write_yaml
from quadriga.launch.config.load import resolved

CONFIG = "quadriga-job/config.yaml"
"""Where the config lies in the job's working directory."""
INPUTS = "quadriga-job/inputs"
"""Where the files lie there that the config names; `launch/job_main.py` copies them into the run directory."""
LIMIT = 100 << 20
"""Bytes that a job may bring. Ray keeps them in the head's memory and sends them to every node."""
NAMED = 5
"""Files named when they are too large together."""

PATHS = ("path", "chat_template", "train", "heldout", "earlier_rankings")
"""Keys of a config whose texts, or lists of texts, are paths."""
OWN = ("cluster", "inputs")
"""Sections without paths of this machine: what they name is the cluster's, or made by an earlier stage."""


@dataclass(frozen=True)
class Staged:
    """Folders for Ray's `runtime_env`."""

    py_modules: list[str]
    working_dir: str


def stage_job(
    stage: Any, folder: Path, working_dir: Path | None = None, shared: Sequence[Path] = (), limit: int = LIMIT
) -> Staged:
    """Lay out in `folder` what a job of this validated stage brings along.

    working_dir: the user's own modules, copied to where the run starts. shared: folders that the nodes see too; what
    lies there stays there. limit: bytes of all files together, Quadriga's own not counted.
    Raises UserError when they are more.
    """
    inputs = Inputs([*shared, Path(stage.run_dir)], inputs_of(Path(stage.run_dir)))
    config = on_cluster(resolved(stage))
    _rewrite(config, inputs)
    files = inputs.files if working_dir is None else _files_below(working_dir, "") | inputs.files
    _require_small(files, limit)
    target = folder / "working_dir"
    for place, file in files.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / place)
    (target / CONFIG).parent.mkdir(parents=True, exist_ok=True)
    write_yaml(target / CONFIG, config)
    return Staged(stage_package(folder / "py_modules"), str(target))


def stage_package(folder: Path) -> list[str]:
    """Copy the installed Quadriga and its metadata, as Ray's `py_modules` take them; returns the two folders.

    A wheel would not do: Ray knows one by its file name, and would run an older build of the same version.
    """
    root = Path(__file__).resolve().parents[2]
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for package in [*(file.parent for file in root.glob("*/__init__.py")), root / "configs"]:
        shutil.copytree(package, folder / "quadriga" / package.name, ignore=skip)
    about = distribution("quadriga")
    metadata = folder / f"quadriga-{about.version}.dist-info"  # so that the run can tell its version
    metadata.mkdir()
    said = about.read_text("METADATA") or about.read_text("PKG-INFO") or ""  # installed, or beside a checkout
    (metadata / "METADATA").write_text(said, encoding="utf-8")
    return [str(folder / "quadriga"), str(metadata)]


def on_cluster(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same run inside of a Ray job: it joins the job's cluster."""
    configs = [config, *(entry["config"] for part in ("stages", "repeat") for entry in config.get(part, []))]
    for each in configs:
        each["cluster"] = each.get("cluster", {}) | {"address": "auto", "ssh": None, "slurm": None, "kubernetes": None}
    return config


def inputs_of(run_dir: Path) -> Path:
    """Where the files that a job brought are for all nodes: the driver's working directory is the driver's only."""
    return run_dir / "inputs"


class Inputs:
    """Files of this machine that go along. files: place in the job -> file here. home: where the run finds them.

    A path has a folder of its own, named after it: where it lies in the job does not depend on the others, since a run
    that is sent again must find its config unchanged.
    """

    def __init__(self, shared: Iterable[Path], home: Path):
        self.files: dict[str, Path] = {}
        self._home = home
        self._shared = [path.expanduser().absolute() for path in shared]
        self._places: dict[str, str] = {}

    def place(self, written: str) -> str:
        """Where the run finds a path, folder or glob of the config; as it was, when it is not on this machine."""
        if written not in self._places:
            self._places[written] = self._take(written, sha256(written.encode()).hexdigest()[:8])
        return self._places[written]

    def _take(self, written: str, own: str) -> str:
        path = Path(os.path.abspath(Path(written).expanduser()))
        if any(path.is_relative_to(folder) for folder in self._shared):
            return str(path)
        if path.exists():
            self.files |= _files_below(path, f"{INPUTS}/{own}/{path.name}")
            return str(self._home / own / path.name)
        fixed = next(above for above in path.parents if not glob.has_magic(str(above)))
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        for file in found:
            self.files |= _files_below(file, f"{INPUTS}/{own}/{file.relative_to(fixed)}")
        return str(self._home / own / path.relative_to(fixed)) if found else written


def _rewrite(value: Any, inputs: Inputs) -> None:
    """Replace every path below a config's section by its place in the job."""
    if isinstance(value, list):
        for item in value:
            _rewrite(item, inputs)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in PATHS and isinstance(item, str):
            value[key] = inputs.place(item)
        elif key in PATHS and isinstance(item, list) and all(isinstance(each, str) for each in item):
            value[key] = [inputs.place(each) for each in item]
        elif key not in OWN:
            _rewrite(item, inputs)


def _files_below(path: Path, place: str) -> dict[str, Path]:
    """Place in the job -> file. What begins with a dot stays here (.git, .env), and so do caches."""
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
    largest = sorted(sizes, key=lambda file: -sizes[file])[:NAMED]
    named = ", ".join(f"{file} ({_megabytes(sizes[file])})" for file in largest)
    raise UserError(
        f"The files on this machine that the run needs are {_megabytes(sum(sizes.values()))}, and a job brings at most "
        f"{_megabytes(limit)}. The largest are {named}. Put them on storage that every node sees. If they are there "
        "already, name that folder with --shared, and they stay where they are."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
