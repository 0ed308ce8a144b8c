"""The fine-tuning stage: its settings and its StageSpec."""

from collections.abc import Iterator
from typing import Literal

from quadriga.orchestrator.settings import TrainStage
from quadriga.orchestrator.stages.base import SupervisedSpec, UnusedKey


class SftStage(TrainStage):
    """Fine-tuning on demonstrations: loss on the assistant's tokens only, end token included."""

    stage: Literal["sft"]
    """Kind of stage."""
    stop_when_heldout_rises: bool = False
    """Whether the stage ends when held-out loss has not improved for two measurements."""


class SftSpec(SupervisedSpec[SftStage]):
    """A stage that trains a policy on demonstrations."""

    def unused(self, settings: SftStage) -> Iterator[UnusedKey]:
        """Yield the rule of stopping that nothing is measured for."""
        yield from super().unused(settings)
        if settings.heldout_every is None:
            yield ("stop_when_heldout_rises",), "held-out loss is measured only at the end without `heldout_every`"


SFT = SftSpec(
    settings=SftStage,
    trainer="quadriga.orchestrator.stages.sft.trainer:Sft",
    loader="quadriga.data.loading.datasets:load_demonstrations",
)
