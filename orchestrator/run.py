"""`quadriga run`: runs a stage or a pipeline from its validated config."""

from collections.abc import Sequence

from quadriga.data.errors import INTERRUPTED
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.attempt import run_stage
from quadriga.orchestrator.pipeline import Build, run_pipeline
from quadriga.orchestrator.pipeline_settings import PipelineStage
from quadriga.orchestrator.stages.registry import AnyStage


def run(stage: AnyStage, build: Build | None = None, allowed: Sequence[str] = ()) -> int:
    """Run a validated stage or pipeline to its end; return the exit code (0 finished, 130 stopped cleanly).

    A finished run is left as it is. build: makes a stage from a pipeline entry's config and inputs; needed for a
    pipeline. allowed: keys of the config that may differ from the run's first attempt although they alter training.
    Raises UserError for bad input and Fault for a failure; run.json records both first.
    """
    run_dir = RunDir.create(stage.run_dir or f"runs/{stage.name}")
    with run_dir.locked():
        if isinstance(stage, PipelineStage):
            assert build is not None
            return run_pipeline(stage, run_dir, build, allowed)
        return 0 if run_stage(stage, run_dir, allowed) else INTERRUPTED
