"""An attempt at a stage in its run directory, recorded in run.json."""

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import yaml

from quadriga.data.errors import Fault, UserError
from quadriga.data.loading.source_digest import SourceDigest
from quadriga.data.registry import import_object
from quadriga.data.rundir import RunDir, Status
from quadriga.data.secrets import without_secrets
from quadriga.data.tokens import clock
from quadriga.orchestrator.config_changes import altering_changes, data_changes, in_this_version, refused
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.registry import spec_of
from quadriga.orchestrator.tracking.console import StageProgress, stage_progress
from quadriga.orchestrator.tracking.tracker import Replay

PACKAGES = ("torch", "transformers", "deepspeed", "ray", "wandb")
"""Packages whose versions run.json records."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


class Trainer(Protocol):
    """What runs a stage."""

    def execute(self, progress: StageProgress, replay: Replay) -> bool:
        """Run to the end, or to a clean stop. Return True when the stage is finished, False when it was stopped."""
        ...


def run_stage(settings: StageBase, run_dir: RunDir, allowed: Sequence[str] = ()) -> bool:
    """Run one stage in its directory; return True if it is finished, now or before, and False if it was stopped.

    allowed: keys that may have changed although they alter training.
    Raises UserError if other settings would alter the training of a run that has results already.
    """
    with stage_progress(settings.stage, settings.name, run_dir.path) as progress:
        changes = _changes(settings, run_dir)
        finished = run_dir.read_run().get("status") == "finished"
        data: dict[str, SourceDigest] = {}
        if not (finished and not changes):  # the rows of a finished run may be gone
            read: dict[str, dict[str, Any]] = run_dir.read_run().get("data", {})
            data = _digests(settings, {key: int(each["rows"]) for key, each in read.items()})
            changes |= data_changes(read, data, changes)
        has_results = finished or spec_of(settings).has_results(run_dir)
        if has_results and (differing := refused(changes, allowed)):
            noun = "other rows" if differing.keys() <= data.keys() else "other settings"
            listed = "; ".join(f"`{key}` was {old!r} and is {new!r}" for key, (old, new) in differing.items())
            raise UserError(
                f"{run_dir.path} was started with {noun}: {listed}. Resuming would mix two trainings. Set them "
                f"back, choose another `run_dir`, or allow the change: --allow-changed {next(iter(differing))}."
            )
        if finished and not changes:
            progress.skipped()
            return True
        run_dir.update_run(data={key: each.to_json() for key, each in data.items()})
        return _attempt(run_dir, settings, progress, "forget" if changes else "exact")


def _changes(settings: StageBase, run_dir: RunDir) -> dict[str, tuple[Any, Any]]:
    """Return the changes since the previous attempt that alter training: `key.path` -> (old, new)."""
    if not run_dir.config_path.is_file():
        return {}
    before = yaml.safe_load(run_dir.config_path.read_text(encoding="utf-8"))
    known = in_this_version(before, type(settings))
    return altering_changes(without_secrets(known), without_secrets(settings.model_dump(mode="json")))


def _digests(settings: StageBase, earlier: Mapping[str, int]) -> dict[str, SourceDigest]:
    """Return key of a source -> what its files hold now. earlier: key -> number of rows that the run read.

    A source that cannot be read is left out: the stage says why.
    """
    found = {}
    for data in spec_of(settings).datasets(settings):
        for part in ("train", "heldout"):
            for number, source in enumerate(getattr(data.source, part)):
                key = f"{data.key}.{part}.{number}"
                if source.path is not None:
                    with contextlib.suppress(UserError):
                        found[key] = SourceDigest.read(source, earlier.get(key))
    return found


def _attempt(run_dir: RunDir, settings: StageBase, progress: StageProgress, replay: Replay) -> bool:
    """Run the stage and record the attempt; return whether it finished."""
    run_dir.start_attempt(versions())
    run_dir.write_config(settings.model_dump(mode="json"))
    with failure_recorded(run_dir), clock.frozen_at(run_dir.began()):
        finished = trainer_class(settings)(settings, run_dir).execute(progress, replay)
    run_dir.end_attempt("finished" if finished else "interrupted")
    return finished


@contextlib.contextmanager
def failure_recorded(run_dir: RunDir) -> Iterator[None]:
    """Write an exception of the block into run.json as the end of the attempt, then let it through.

    Raises Fault in place of an OSError that says that the disk cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            _record(run_dir, error)
            raise
        fault = Fault(
            f"The run directory {run_dir.path} cannot be written: {error.strerror}. Free some space or fix the disk, "
            "then run again: the run resumes from the newest checkpoint.",
            phase="commit",
        )
        _record(run_dir, fault)
        raise fault from error
    except BaseException as error:
        _record(run_dir, error)
        raise


def _record(run_dir: RunDir, error: BaseException) -> None:
    """End the attempt in run.json with the status and the message that an exception stands for."""
    status: Status = "failed"
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        status, text = "interrupted", "stopped by the user before the step was finished"
    elif isinstance(error, UserError | Fault):
        text = str(error)
    with contextlib.suppress(OSError):  # the first failure is the one to report
        run_dir.end_attempt(status, text)


def trainer_class(settings: StageBase) -> Callable[[StageBase, RunDir], Trainer]:
    """Return the class of a stage's trainer. Imports the heavy modules that it needs.

    Raises UserError if it cannot be imported.
    """
    try:
        found: Callable[[StageBase, RunDir], Trainer] = import_object(spec_of(settings).trainer)
    except ValueError as error:
        raise UserError(f"The trainer of `stage: {settings.stage}` cannot be used: {error}.") from error
    return found


def versions() -> dict[str, str]:
    """Return the versions of Quadriga and of `PACKAGES`."""
    return {"quadriga": version("quadriga")} | {name: version(name) for name in PACKAGES}
