"""Model lookup: resolves a name on the command line (a run, a pipeline, a checkpoint or a model folder)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from quadriga.actors.model.folder import read_config
from quadriga.actors.settings import ClusterSettings
from quadriga.data.errors import UserError
from quadriga.data.model_path import how_to_download, local_folder
from quadriga.data.rundir import RunDir

S = TypeVar("S", bound=BaseModel)
Kind = Literal["policy", "reward"]
LEVELS = 6
"""How many folders to search upwards for a model's run, as in run/round-1/ppo/checkpoints/step-9/export/policy."""
NO_POLICY = ("ForSequenceClassification", "ForTokenClassification")


@dataclass(frozen=True)
class ResolvedModel:
    """A model found by name.

    folder: the folder of its config.json. run: the run directory that contains it, None outside a run.
    """

    name: str
    folder: str
    run: RunDir | None

    @property
    def cluster(self) -> ClusterSettings:
        """The cluster settings of its run. Raises UserError if this version cannot read the run's config."""
        value = self._config(self.run).get("cluster") if self.run else None
        return ClusterSettings() if value is None else _validated(ClusterSettings, value, self.run)

    def pipeline_section(self, key: str, kind: type[S]) -> S | None:
        """Return a section of its pipeline's config, None without one. Raises UserError as `cluster` does."""
        pipeline = self._pipeline
        value = self._config(pipeline).get(key) if pipeline else None
        return None if value is None else _validated(kind, value, pipeline)

    @property
    def reward(self) -> str | None:
        """The folder of the reward model that its run's newest stage was trained against; None if there is none or it
        was removed."""
        return _existing(_path(self._newest_with("reference"), "reward"))

    @property
    def reference(self) -> str | None:
        """The folder of the model from which that stage measured KL; None as `reward`."""
        config = self._newest_with("reference")
        return _existing(_path(config, "reference") or _path(config, "policy"))

    @property
    def _pipeline(self) -> RunDir | None:
        """The pipeline's run directory: the run itself, or the one two folders above it."""
        if self.run is None:
            return None
        above = [self.run, RunDir(self.run.path.parent.parent)]
        return next((run for run in above if self._config(run).get("stage") == "pipeline"), None)

    def _newest_with(self, key: str) -> dict[str, Any]:
        """Return the config of the newest stage that has a key, null or not; empty without one."""
        if self.run is None:
            return {}
        pipeline = self._pipeline
        runs = [self.run, *(reversed(stage_runs(pipeline.path)) if pipeline else [])]
        return next((config for run in runs if key in (config := self._config(run))), {})

    @staticmethod
    def _config(run: RunDir) -> dict[str, Any]:
        try:
            value = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except yaml.YAMLError as error:
            raise UserError(f"{run.config_path} is damaged ({error}). Give the model's folder instead.") from None
        return value if isinstance(value, dict) else {}


def find_model(name: str, kind: Kind = "policy") -> ResolvedModel:
    """Return the model that `name` stands for.

    name: a model folder, a checkpoint, a run (its export, else that of its newest checkpoint) or a pipeline (its
    export, else that of the newest stage that has one).
    Raises UserError if there is no such model.
    """
    path = Path(local_folder(name)).absolute()
    if not path.is_dir():
        raise UserError(
            f"There is no folder {name}. Give a run directory such as runs/assistant, or the folder of a model."
            + how_to_download(name)
        )
    folder = next(_folders(path, kind), None)
    if folder is None:
        raise UserError(
            f"{name} holds no {kind} model: neither a config.json nor export/{kind}, in it or in a checkpoint. A run "
            "has one after its first checkpoint."
        )
    architectures = " ".join(read_config(folder).get("architectures") or [])
    if (kind == "policy") == any(ending in architectures for ending in NO_POLICY) and architectures:
        wanted = "a causal language model" if kind == "policy" else "a reward model"
        raise UserError(f"{name} is a {architectures}, and {wanted} is needed. Give the folder of one.")
    above = [folder, *folder.parents][:LEVELS]
    return ResolvedModel(name, str(folder), next((RunDir(p) for p in above if (p / "run.json").is_file()), None))


def stage_runs(pipeline: Path) -> list[RunDir]:
    """Return the run directories of a pipeline's stages, oldest first: by round, then by start time."""
    runs = [RunDir(file.parent) for file in pipeline.glob("round-*/*/run.json")]
    return sorted(runs, key=lambda r: (int(r.path.parent.name.removeprefix("round-")), _started(r), r.path.name))


def _folders(path: Path, kind: Kind) -> Iterator[Path]:
    """Yield the folders in which the model may be, best first."""
    if (path / "config.json").is_file():
        yield path
    yield from _exports(RunDir(path), kind)
    for run in reversed(stage_runs(path)):
        yield from _exports(run, kind)


def _exports(run: RunDir, kind: Kind) -> Iterator[Path]:
    """Yield a run's exports of a kind: its own, then those of its checkpoints, newest first."""
    exports = [run.export_dir, *(run.checkpoint_dir(step) / "export" for step in reversed(run.checkpoint_steps()))]
    yield from (export / kind for export in exports if (export / kind / "config.json").is_file())


def _started(run: RunDir) -> str:
    attempts = run.read_run().get("attempts") or [{}]
    return str(attempts[0].get("started", ""))


def _path(config: dict[str, Any], key: str) -> str | None:
    return (config.get(key) or {}).get("path")


def _existing(path: str | None) -> str | None:
    return path if path is not None and (Path(path) / "config.json").is_file() else None


def _validated(settings: type[S], value: Any, run: RunDir | None) -> S:
    try:
        return settings.model_validate(value)
    except ValidationError as error:
        assert run is not None
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{run.config_path} was written by another version of Quadriga ({where}: {first['msg']}). Give the model's "
            "folder, copied out of the run, instead."
        ) from None
