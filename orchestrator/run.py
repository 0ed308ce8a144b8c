"""Run one stage or a pipeline in its run directory, and keep the account of it in run.json."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.console import StageProgress, stage_progress
from quadriga.orchestrator.settings import PipelineStage

PACKAGES = ("torch", "transformers", "deepspeed", "ray", "wandb")
INTERRUPTED = 130


def run(stage: Any, build: Callable[..., Any] | None = None) -> int:
    """Run a validated stage or pipeline to its end; returns the exit code (0 finished, 130 stopped cleanly).

    build: makes a stage from a pipeline entry's config and inputs. A finished run is left as it is.
    Raises UserError for bad input and Fault when something broke; both are noted in run.json first.
    """
    if isinstance(stage, PipelineStage):
        from quadriga.orchestrator.pipeline import run_pipeline

        assert build is not None
        return run_pipeline(stage, build)
    return 0 if run_stage(stage, RunDir.create(stage.run_dir or f"runs/{stage.name}")) else INTERRUPTED


def run_stage(settings: Any, run_dir: RunDir) -> bool:
    """Run one stage in its directory. True when it is finished, now or before; False when it was stopped."""
    with stage_progress(settings.stage, settings.name, run_dir.path) as progress:
        if run_dir.read_run().get("status") == "finished":
            progress.skipped()
            return True
        return account(run_dir, settings, progress)


def account(run_dir: RunDir, settings: Any, progress: StageProgress) -> bool:
    """Run the stage's loop and write down how it went."""
    run_dir.start_attempt(versions())
    run_dir.write_config(settings.model_dump(mode="json"))
    try:
        finished = _stage(settings, run_dir).execute(progress)
    except KeyboardInterrupt:
        run_dir.end_attempt("interrupted", "stopped by the user before the step was finished")
        raise
    except (UserError, Fault) as error:
        run_dir.end_attempt("failed", str(error))
        raise
    except BaseException as error:
        run_dir.end_attempt("failed", f"{type(error).__name__}: {error}")
        raise
    run_dir.end_attempt("finished" if finished else "interrupted")
    return finished


def _stage(settings: Any, run_dir: RunDir) -> Any:
    from quadriga.orchestrator.ppo import Ppo
    from quadriga.orchestrator.rank import Rank
    from quadriga.orchestrator.supervised import Pretrain, Reward, Sft

    stages: Mapping[str, Any] = {cls.stage: cls for cls in (Pretrain, Sft, Reward, Rank, Ppo)}
    return stages[settings.stage](settings, run_dir)


def versions() -> dict[str, str]:
    """Versions of what a run runs on."""
    return {"quadriga": version("quadriga")} | {name: version(name) for name in PACKAGES}
