"""The ranking stage: its settings and its StageSpec."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from quadriga.actors.settings import ModelSettings, SamplingSettings
from quadriga.data.errors import UserError
from quadriga.data.registry import Choice
from quadriga.data.rundir import RunDir
from quadriga.data.settings import DataSettings
from quadriga.orchestrator.rewards.base import RewardSettings, require_no_model
from quadriga.orchestrator.rewards.registry import REWARDS
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.base import StageData, StageModel, StageSpec, UnusedKey
from quadriga.orchestrator.stages.work import Elements, Work, evenly

CHUNK_PROMPTS = 256
"""Prompts per chunk that is sampled, scored and written: what an interruption can cost."""


class RankStage(StageBase):
    """Sample several answers per prompt from the current policy and have them ranked."""

    stage: Literal["rank"]
    """Kind of stage."""
    policy: ModelSettings
    """Policy that answers."""
    prompts: DataSettings
    """Prompts to answer."""
    answers_per_prompt: tuple[int, int] = (4, 9)
    """Smallest and largest number of answers per prompt; the number is drawn for each prompt."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    annotator: Annotated[RewardSettings, Choice(REWARDS)]
    """Reward that scores every answer; answers closer than `tie_margin` are tied."""
    tie_margin: float = Field(1e-6, ge=0)
    """Difference of scores up to which two answers are tied."""
    earlier_rankings: list[str] = []
    """Files of rankings of earlier rounds, mixed in."""
    round: int = Field(1, ge=1)
    """Repetition of the recipe that the answers belong to; every ranking is marked with it."""


class RankSpec(StageSpec[RankStage]):
    """A stage that only generates; its results are files of rankings, one per chunk of prompts."""

    def models(self, settings: RankStage) -> list[StageModel]:
        """Return the policy."""
        return [StageModel("rollout", settings.policy, "policy")]

    def datasets(self, settings: RankStage) -> list[StageData]:
        """Return the prompts."""
        return [StageData(settings.prompts, "prompts", "quadriga.data.loading.datasets:load_prompts", "prompts")]

    def sampling(self, settings: RankStage) -> SamplingSettings:
        """Return how answers are drawn."""
        return settings.sampling

    def rewards(self, settings: RankStage) -> list[RewardSettings]:
        """Return the annotator."""
        return [settings.annotator]

    def check(self, settings: RankStage) -> None:
        """Raise UserError unless every prompt gets two answers to compare."""
        fewest, most = settings.answers_per_prompt
        if not 2 <= fewest <= most:
            raise UserError(
                f"`answers_per_prompt` is [{fewest}, {most}]: both must be at least 2, the smaller number first."
            )
        require_no_model(settings.annotator, "annotator")

    def unused(self, settings: RankStage) -> Iterator[UnusedKey]:
        """Yield the faults, which need a training step to happen in."""
        for key in ("planned", "random"):
            yield ("faults", key), "a ranking stage has no training steps, in which faults happen"

    def steps(self, settings: RankStage) -> int:
        """Return 1: the prompts are answered once."""
        return 1

    def has_results(self, run: RunDir) -> bool:
        """Return whether a chunk of rankings is written."""
        return any(run.samples_dir.iterdir())

    def round_settings(self, number: int) -> dict[str, Any]:
        """Return the round that rankings are marked with, from 1."""
        return {"round": max(1, number)}

    def work(self, settings: RankStage, elements: Elements) -> Work:
        """Return the requests of one chunk."""
        requests = round(CHUNK_PROMPTS * (sum(settings.answers_per_prompt) / 2))
        prompts = [length for (length,) in evenly(elements, requests)]
        return Work(prompts=prompts, answer=settings.sampling.max_tokens)


RANK = RankSpec(
    settings=RankStage,
    trainer="quadriga.orchestrator.stages.rank.trainer:Rank",
    outputs={"rankings": "export/rankings.jsonl"},
    list_inputs=("earlier_rankings",),
)
