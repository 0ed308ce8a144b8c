"""Settings of rewards, chosen by `type`."""

from typing import Annotated, Literal

from pydantic import Field

from quadriga.data.settings import Settings


class RewardFunctionSettings(Settings):
    """A Python function that scores answers, run in subprocesses that can be killed."""

    type: Literal["function"]
    """Kind of reward."""
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """The function as `module:function`. It gets a list of rows {"prompt", "messages", "response", "meta"} and returns
    as many results: numbers, or dicts of numbers with at least "score"."""
    timeout: float = Field(10.0, gt=0)
    """Longest time for one call (a chunk of answers), in seconds."""
    processes: int = Field(1, ge=1)
    """Number of subprocesses that call the function at the same time."""
    retries: int = Field(1, ge=0)
    """How often a failed answer is scored again, by itself, after an exception, a death or a time-out."""
    drop: Literal["answer", "group"] = "answer"
    """What is dropped when an answer fails for good (never scored 0): the answer, or all answers to its prompt."""
    max_error_rate: float = Field(0.1, ge=0, le=1)
    """Share of a batch's answers that may fail for good before the run stops; with 0 the first failure stops it."""


class RewardModelSettings(Settings):
    """A reward model: sequence classification with one label."""

    type: Literal["model"]
    """Kind of reward."""
    path: str
    """Folder of the reward model, for example `runs/my-rm/export/reward`."""


RewardSettings = Annotated[RewardModelSettings | RewardFunctionSettings, Field(discriminator="type")]
"""What gives answers their scores, chosen by `type`."""
