"""Settings of an evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from quadriga.actors.settings import SamplingSettings
from quadriga.data.registry import Choice
from quadriga.data.settings import DataSettings, Settings, Sources
from quadriga.orchestrator.rewards.base import RewardSettings
from quadriga.orchestrator.rewards.registry import REWARDS


class EvaluationPrompts(Settings):
    """Prompts that are measured on and that no stage trains on."""

    rows: Sources
    """Where the prompts come from: files by path, or a table of the built-in data set."""
    max_tokens: int = Field(512, ge=8)
    """Longest prompt, in tokens; a longer one is a bad row."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Whether a bad row stops the evaluation with file, line and reason, or is left out and counted."""
    chat_template: str | None = None
    """Path of a Jinja chat template, or the name of one that comes with Quadriga (`qwen3`); null uses the tokenizer's
    template, or a built-in one where it has none."""

    @property
    def data(self) -> DataSettings:
        """The same as settings of the data layer."""
        return DataSettings(
            train=self.rows, max_tokens=self.max_tokens, on_bad_row=self.on_bad_row, chat_template=self.chat_template
        )


class EvaluationSettings(Settings):
    """How a pipeline measures its stages against each other."""

    prompts: EvaluationPrompts
    """Held-out prompts."""
    gold_reward: Annotated[RewardSettings, Choice(REWARDS)]
    """Reward that measures the answers; no stage is trained on it."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn; above temperature 0 they are also drawn greedily."""
    rows: int = Field(300, ge=1)
    """Number of prompts that are answered."""
