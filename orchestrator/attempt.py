"""One attempt at a stage in its run directory, with the account of it in run.json."""

import contextlib
import errno
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir, Status
from quadriga.data.secrets import without_secrets
from quadriga.orchestrator.config_changes import altering_changes, refused
from quadriga.orchestrator.tracking.console import StageProgress, stage_progress
from quadriga.orchestrator.tracking.tracker import Replay

PACKAGES = ("torch", "transformers", "deepspeed", "ray", "wandb")
INTERRUPTED = 130
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


def run_stage(settings: Any, run_dir: RunDir, allowed: Sequence[str] = ()) -> bool:
    """Run one stage in its directory. True when it is finished, now or before; False when it was stopped.

    Raises UserError when the settings would alter the training of a run that has got somewhere.
    """
    with stage_progress(settings.stage, settings.name, run_dir.path) as progress:
        changes = _changes(settings, run_dir)
        finished = run_dir.read_run().get("status") == "finished"
        begun = (
            finished or run_dir.checkpoint_steps() or (settings.stage == "rank" and any(run_dir.samples_dir.iterdir()))
        )
        if begun and (differing := refused(changes, allowed)):
            listed = "; ".join(f"`{key}` was {old!r} and is {new!r}" for key, (old, new) in differing.items())
            raise UserError(
                f"{run_dir.path} was begun with other settings: {listed}. Going on would mix two trainings. Set them "
                f"back, choose another `run_dir`, or say that you mean it: --allow-changed {next(iter(differing))}."
            )
        if finished and not changes:
            progress.skipped()
            return True
        return _attempt(run_dir, settings, progress, "forget" if changes else "exact")


def _changes(settings: Any, run_dir: RunDir) -> dict[str, tuple[Any, Any]]:
    """What differs from the config of the attempt before, as far as it alters training."""
    if not run_dir.config_path.is_file():
        return {}
    before = yaml.safe_load(run_dir.config_path.read_text(encoding="utf-8"))
    return altering_changes(before, without_secrets(settings.model_dump(mode="json")))


def _attempt(run_dir: RunDir, settings: Any, progress: StageProgress, replay: Replay) -> bool:
    """Run the stage's loop and write down how it went."""
    run_dir.start_attempt(versions())
    run_dir.write_config(settings.model_dump(mode="json"))
    try:
        finished = _stage(settings, run_dir).execute(progress, replay)
    except BaseException as error:
        raise record_failure(run_dir, error) from None
    run_dir.end_attempt("finished" if finished else "interrupted")
    return finished


def record_failure(run_dir: RunDir, error: BaseException) -> BaseException:
    """Write down how an attempt ended; returns what to raise: a disk that cannot be written is a Fault."""
    if isinstance(error, OSError) and error.errno in DISK:
        error = Fault(
            f"The run directory {run_dir.path} cannot be written: {error.strerror}. Free some space, or mend it, and "
            "run again: it goes on from the newest checkpoint.",
            phase="commit",
        )
    status: Status = "failed"
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        status, text = "interrupted", "stopped by the user before the step was finished"
    elif isinstance(error, UserError | Fault):
        text = str(error)
    with contextlib.suppress(OSError):  # the first failure is the one to tell
        run_dir.end_attempt(status, text)
    return error


def _stage(settings: Any, run_dir: RunDir) -> Any:
    from quadriga.orchestrator.stages.ppo.trainer import Ppo
    from quadriga.orchestrator.stages.pretrain.trainer import Pretrain
    from quadriga.orchestrator.stages.rank.trainer import Rank
    from quadriga.orchestrator.stages.reward_model.trainer import Reward
    from quadriga.orchestrator.stages.sft.trainer import Sft

    stages: Mapping[str, Any] = {cls.stage: cls for cls in (Pretrain, Sft, Reward, Rank, Ppo)}
    return stages[settings.stage](settings, run_dir)


def versions() -> dict[str, str]:
    """Versions of what a run runs on."""
    return {"quadriga": version("quadriga")} | {name: version(name) for name in PACKAGES}
