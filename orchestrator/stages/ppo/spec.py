"""The PPO stage: its settings and its StageSpec."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from quadriga.actors.settings import ModelSettings, OptimizerSettings, SamplingSettings
from quadriga.data.errors import UserError
from quadriga.data.registry import Choice
from quadriga.data.settings import DataSettings
from quadriga.orchestrator.algorithms.settings import AlgorithmSettings
from quadriga.orchestrator.rewards.base import RewardSettings, require_no_model
from quadriga.orchestrator.rewards.registry import REWARDS
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.base import StageData, StageModel, StageSpec, UnusedKey
from quadriga.orchestrator.stages.work import Elements, Work, evenly


class PpoStage(StageBase):
    """PPO against a reward."""

    stage: Literal["ppo"]
    """Kind of stage."""
    policy: ModelSettings
    """Policy that training starts from."""
    reference: ModelSettings | None = None
    """Policy that KL is measured from; null takes the policy's starting weights."""
    critic: ModelSettings | None = None
    """Model that the critic starts from; null starts it from the reward model (needs `reward.type: model`)."""
    reward: Annotated[RewardSettings, Choice(REWARDS)]
    """What PPO maximises: a reward model or a function."""
    prompts: DataSettings
    """Prompts to answer; each is used once per epoch."""
    prompts_per_step: int = Field(64, ge=1)
    """Number of prompts per step."""
    samples_per_prompt: int = Field(1, ge=1)
    """Number of answers per prompt."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    algorithm: AlgorithmSettings = AlgorithmSettings()
    """Numbers of PPO itself."""
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-6, schedule="constant")
    """Optimizer of the policy."""
    critic_optimizer: OptimizerSettings = OptimizerSettings(lr=9e-6, schedule="constant")
    """Optimizer of the critic."""
    gold_reward: Annotated[RewardSettings, Choice(REWARDS)] | None = None
    """A second reward that training never sees (Gao et al. 2023), logged beside the first as `reward/gold`; null logs
    none."""

    @property
    def reward_path(self) -> str | None:
        """Folder of the reward model; None when the reward is not a model."""
        return self.reward.model_path


class PpoSpec(StageSpec[PpoStage]):
    """A stage that generates and trains: actor, critic, reference and reward model beside the engines."""

    def models(self, settings: PpoStage) -> list[StageModel]:
        """Return the models that the algorithm and the reward need, the actor first."""
        policy, path = settings.policy, settings.reward_path
        scorer = ModelSettings(path=path) if path is not None else None
        models = [StageModel("actor", policy, "policy", trained=True)]
        if settings.algorithm.needs_critic:
            start, key = (settings.critic, "critic") if settings.critic else (scorer or policy, "reward")
            models.append(StageModel("critic", start, key, "scalar", trained=True))
        start, key = (settings.reference, "reference") if settings.reference else (policy, "policy")
        models.append(StageModel("reference", start, key))
        if scorer is not None:
            models.append(StageModel("reward", scorer, "reward", "scalar"))
        return [*models, StageModel("rollout", policy, "policy")]

    def datasets(self, settings: PpoStage) -> list[StageData]:
        """Return the prompts."""
        return [StageData(settings.prompts, "prompts", "quadriga.data.loading.datasets:load_prompts", "prompts")]

    def sampling(self, settings: PpoStage) -> SamplingSettings:
        """Return how answers are drawn."""
        return settings.sampling

    def rewards(self, settings: PpoStage) -> list[RewardSettings]:
        """Return the reward and the gold reward."""
        return [reward for reward in (settings.reward, settings.gold_reward) if reward is not None]

    def makes(self, settings: PpoStage) -> Mapping[str, str]:
        """Return policy, and critic if there is one."""
        critic = settings.algorithm.needs_critic
        return {name: path for name, path in self.outputs.items() if critic or name != "critic"}

    def check(self, settings: PpoStage) -> None:
        """Raise UserError if the critic has no weights to start from, or answers have none to be compared with."""
        estimator = settings.algorithm.estimator
        if estimator.needs_group and settings.samples_per_prompt == 1:
            raise UserError(
                f"`algorithm.estimator.type: {estimator.type}` compares the answers to a prompt, and "
                "`samples_per_prompt` is 1: nothing would be learned. Set it to 4 or more."
            )
        require_no_model(settings.gold_reward, "gold_reward")
        if settings.algorithm.needs_critic and settings.critic is None and settings.reward_path is None:
            raise UserError(
                "The critic starts from the reward model, and a function is not a model. Name a model folder with "
                "`critic.path`, for example the policy's."
            )

    def unused(self, settings: PpoStage) -> Iterator[UnusedKey]:
        """Yield what the KL coefficient, the estimator or the number of samples makes idle."""
        samples = settings.prompts_per_step * settings.samples_per_prompt
        if settings.algorithm.kl.coefficient == 0:
            yield ("algorithm", "kl", "adaptive"), "it multiplies `algorithm.kl.coefficient`, which is 0"
        if not settings.algorithm.needs_critic:
            reason = f"the estimator {settings.algorithm.estimator.type!r} needs no critic"
            yield from ((key, reason) for key in (("critic",), ("critic_optimizer",), ("algorithm", "value_clip")))
        if settings.algorithm.minibatch_size > samples:
            yield ("algorithm", "minibatch_size"), f"a step has only {samples} samples"

    def work(self, settings: PpoStage, elements: Elements) -> Work:
        """Return the requests, passes and minibatches of a step whose answers have the maximum length."""
        drawn = evenly(elements, settings.prompts_per_step)
        prompts = [length for (length,) in drawn for _ in range(settings.samples_per_prompt)]
        answer = settings.sampling.max_tokens
        sequences = [[length + answer] for length in prompts]
        number = -(-len(sequences) // settings.algorithm.minibatch_size)
        minibatches = [sequences[start::number] for start in range(number)]
        return Work(minibatches * settings.algorithm.epochs, sequences, prompts, answer)


PPO = PpoSpec(
    settings=PpoStage,
    trainer="quadriga.orchestrator.stages.ppo.trainer:Ppo",
    outputs={"policy": "export/policy", "critic": "export/critic"},
)
