"""What a stage keeps running: its models with their shapes, its engines, and how many tokens a step moves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.actors.model.folder import read_config
from quadriga.actors.model.heads import Head
from quadriga.actors.settings import ClusterSettings, ModelSettings, Role
from quadriga.launch.checks import model as model_checks
from quadriga.launch.config.load import build, is_placeholder, placeholders
from quadriga.launch.plan.shapes import ModelShape, shape_of
from quadriga.orchestrator.algorithms.advantages import ESTIMATORS
from quadriga.orchestrator.settings import (
    PipelineStage,
    PpoStage,
    PretrainStage,
    RankStage,
    RewardStage,
    TrainStage,
)


@dataclass(frozen=True)
class Member:
    """A model that a stage hosts. trained: with an optimizer."""

    role: Role
    shape: ModelShape
    head: Head
    trained: bool


@dataclass(frozen=True)
class PlannedStage:
    """A stage as the plan sees it.

    engine: shape of what the rollout engines serve, None without engines. longest: tokens of the longest sequence.
    assumed: what had to be taken for granted, in sentences.
    """

    name: str
    kind: str
    settings: Any
    cluster: ClusterSettings
    members: list[Member]
    engine: ModelShape | None
    longest: int
    assumed: list[str]

    @property
    def syncs(self) -> bool:
        """Whether trained weights go to the engines."""
        return self.kind == "ppo"

    def member(self, role: str) -> Member:
        """The member of a role."""
        return next(member for member in self.members if member.role == role)


def planned_stages(stage: Any) -> list[PlannedStage]:
    """A stage, or every stage of a pipeline, whose outputs have the shapes of the models they were made from.

    Raises UserError where a model's shape cannot be known.
    """
    if not isinstance(stage, PipelineStage):
        return [_planned(stage.name, stage, {})]
    made: dict[str, ModelShape] = {}
    result = []
    for entry in [*stage.stages, *stage.repeat]:
        settings = build(entry.config, placeholders(entry))
        result.append(_planned(entry.name, settings, made))
        first = result[-1].members[0].shape if result[-1].members else result[-1].engine
        assert first is not None
        made[entry.name] = first
    return result


def _planned(name: str, stage: Any, made: Mapping[str, ModelShape]) -> PlannedStage:
    assumed: list[str] = []
    engine: ModelShape | None = None
    if isinstance(stage, TrainStage):
        vocab = None
        if isinstance(stage, PretrainStage) and stage.model.path is None:
            vocab = _vocabulary(stage)
        shape = _shape(stage.model, made, vocab)
        role: Role = "reward" if isinstance(stage, RewardStage) else "actor"
        members = [Member(role, shape, "scalar" if role == "reward" else "logprobs", True)]
        longest = stage.data.max_tokens
    elif isinstance(stage, RankStage):
        members, engine = [], _shape(stage.policy, made)
        longest = stage.prompts.max_tokens + stage.sampling.max_tokens
    else:
        engine = _shape(stage.policy, made)
        members = list(_ppo_members(stage, engine, made, assumed))
        longest = stage.prompts.max_tokens + stage.sampling.max_tokens
    return PlannedStage(name, stage.stage, stage, stage.cluster, members, engine, longest, assumed)


def _ppo_members(
    stage: PpoStage, policy: ModelShape, made: Mapping[str, ModelShape], assumed: list[str]
) -> Iterator[Member]:
    yield Member("actor", policy, "logprobs", True)
    judge = policy
    if stage.reward_path is not None:
        if is_placeholder(stage.reward_path) or (Path(stage.reward_path) / "config.json").is_file():
            judge = _shape(ModelSettings(path=stage.reward_path), made)
        else:
            assumed.append(f"{stage.reward_path} is not there yet: the reward model is planned as large as the policy.")
    if ESTIMATORS[stage.algorithm.estimator].needs_critic:  # type: ignore[attr-defined]
        yield Member("critic", _shape(stage.critic, made) if stage.critic else judge, "scalar", True)
    yield Member("reference", _shape(stage.reference, made) if stage.reference else policy, "logprobs", False)
    if stage.reward_path is not None:
        yield Member("reward", judge, "scalar", False)


def _shape(model: ModelSettings, made: Mapping[str, ModelShape], vocab: int | None = None) -> ModelShape:
    if model.path is not None and is_placeholder(model.path):
        names = [source.partition(".")[0] for source in model.path.strip("<>").split(" or ")]
        return next(made[name] for name in names if name in made)
    if model.path is not None:
        read_config(model.path)
    return shape_of(model_checks.model_config(model), vocab)


def _vocabulary(stage: PretrainStage) -> int:
    """Fresh weights take the size of the stage's tokenizer."""
    if stage.tokenizer.path is None:
        return stage.tokenizer.vocab_size
    from quadriga.data.tokens.tokenizer import load_tokenizer

    return len(load_tokenizer(stage.tokenizer.path))
