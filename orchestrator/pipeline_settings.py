"""Settings of a pipeline: stages in a row, rounds, evaluation."""

from typing import Any, Literal

from pydantic import Field

from quadriga.actors.settings import ClusterSettings
from quadriga.data.settings import Seed, Settings
from quadriga.orchestrator.evaluation.settings import EvaluationSettings
from quadriga.orchestrator.settings import TrackingSettings


class StageEntry(Settings):
    """One stage of a pipeline."""

    name: str
    """Name of the stage within the pipeline."""
    config: dict[str, Any]
    """The stage's own config, or the path of its YAML relative to the pipeline's."""
    inputs: dict[str, str | list[str]] = {}
    """`key.path` of the stage's config -> `<stage>.<output>` of an earlier one; of a list, the first that exists."""


class PipelineStage(Settings):
    """Stages in a row; then the stages of `repeat`, `rounds` times."""

    stage: Literal["pipeline"]
    """Kind of config."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: letters, digits, dots, dashes and underscores."""
    run_dir: str | None = None
    """Folder for everything that the run writes; null takes runs/<name>."""
    seed: Seed = 0
    """Seed of every stage that names none; each round adds 1000."""
    stages: list[StageEntry]
    """Stages that run once, in this order."""
    rounds: int = Field(1, ge=1)
    """How often the stages of `repeat` run."""
    repeat: list[StageEntry] = []
    """Stages that run in every round, in this order."""
    evaluation: EvaluationSettings | None = None
    """How the stages are measured against each other at the end; null does not measure."""
    tracking: TrackingSettings = TrackingSettings()
    """Defaults of `tracking` for every stage."""
    cluster: ClusterSettings = ClusterSettings()
    """Defaults of `cluster` for every stage."""

    @property
    def entries(self) -> list[StageEntry]:
        """All stages, those that run once first."""
        return [*self.stages, *self.repeat]
