"""The fine-tuning stage: its settings."""

from typing import Literal

from quadriga.orchestrator.settings import TrainStage


class SftStage(TrainStage):
    """Fine-tuning on demonstrations: loss on the assistant's tokens only, end token included."""

    stage: Literal["sft"]
    """Kind of stage."""
    stop_when_heldout_rises: bool = False
    """Whether the stage ends when held-out loss has not improved for two measurements."""
