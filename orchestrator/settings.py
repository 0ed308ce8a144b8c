"""Settings of the stages: one class a stage, named by its `stage:` key."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quadriga.actors.settings import (
    ClusterSettings,
    ModelSettings,
    OptimizerSettings,
    SamplingSettings,
)
from quadriga.data.settings import DataSettings, Settings, Sources


class BestSettings(Settings):
    """Which checkpoint is kept whatever its age."""

    metric: str
    """As in metrics.jsonl, of the step that the checkpoint follows."""
    mode: Literal["max", "min"] = "max"


class CheckpointSettings(Settings):
    """When a stage saves what it needs to go on. It always does at the end and on Ctrl-C or SIGTERM."""

    every_steps: int | None = Field(None, ge=1)
    every_minutes: float | None = Field(None, gt=0)
    """By the wall clock, beside `every_steps`."""
    keep: int = Field(1, ge=1)
    """Newest checkpoints kept."""
    keep_best: BestSettings | None = None


Action = Literal["kill", "stop", "slow", "raise", "disconnect"]
"""SIGKILL; SIGSTOP; SIGSTOP, and SIGCONT after some seconds; an exception; all TCP connections shut down."""

FaultTarget = Literal["actor", "critic", "reference", "reward", "rollout", "driver"]


class PlannedFault(Settings):
    """One fault, once."""

    action: Action
    role: FaultTarget
    rank: int = Field(0, ge=0)
    """Rank of a model, number of a rollout worker."""
    step: int = Field(ge=1)
    """The step during which it happens, from 1."""
    phase: str | None = None
    """A part of the step as in `timing_s/`, or `checkpoint`; null: as the step begins."""
    after: float = Field(0.0, ge=0)
    """Seconds from the begin of the phase."""
    seconds: float = Field(5.0, gt=0)
    """Of `slow`."""

    @model_validator(mode="after")
    def _driver_is_killed(self) -> "PlannedFault":
        if self.role == "driver" and self.action != "kill":
            raise ValueError("the driver can only be killed: it is what notes the others' faults")
        return self


class RandomFaults(Settings):
    """Faults at random moments, the same ones for the same seed."""

    seed: int = 0
    rate: float = Field(0.1, ge=0, le=1)
    """Chance of a fault in a step."""
    actions: list[Action] = Field(["kill"], min_length=1)
    roles: list[FaultTarget] = Field(["actor", "critic", "reference", "reward", "rollout"], min_length=1)
    """The driver, where it is among them, is killed whatever the action."""
    within: float = Field(2.0, ge=0)
    """Seconds after the begin of the step in which it happens."""


class FaultSettings(Settings):
    """A rehearsal: faults to have on purpose. Each is recorded in run.json as it happens, and happens once."""

    planned: list[PlannedFault] = []
    random: RandomFaults | None = None


class TrackingSettings(Settings):
    """metrics.jsonl is always written; W&B beside it."""

    wandb: bool = True
    """Without WANDB_API_KEY in the environment the run is written offline, to sync later."""
    project: str = "quadriga"
    group: str | None = None
    """W&B group; a pipeline puts all of its stages into one."""
    samples: int = Field(8, ge=0)
    """Answers a step written to samples/ and to the W&B table."""


class StageBase(Settings):
    """Keys that every stage has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    run_dir: str | None = None
    """Where everything the run writes goes; null: runs/<name>."""
    seed: int = 0
    total_steps: int = Field(100, ge=1)
    """Optimizer steps (PPO: rounds of generate and update)."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()
    cluster: ClusterSettings = ClusterSettings()
    faults: FaultSettings = FaultSettings()


class TrainStage(StageBase):
    """Keys of the supervised stages."""

    model: ModelSettings
    data: DataSettings
    batch_size: int = Field(32, ge=1)
    """Sequences an optimizer step (reward: prompts with all their answers; pre-training: packed rows)."""
    optimizer: OptimizerSettings = OptimizerSettings()
    heldout_every: int | None = Field(None, ge=1)
    """Steps between measurements on held-out rows; null: only at the end."""


class TokenizerSettings(Settings):
    """The tokenizer that pre-training makes: byte-level BPE."""

    path: str | None = None
    """An existing tokenizer folder; null trains one on the training rows."""
    vocab_size: int = Field(1024, ge=300)


class PretrainStage(TrainStage):
    """Next-token prediction on packed documents."""

    stage: Literal["pretrain"]
    tokenizer: TokenizerSettings = TokenizerSettings()


class SftStage(TrainStage):
    """Fine-tuning on demonstrations: loss on the assistant's tokens only, end token included."""

    stage: Literal["sft"]
    stop_when_heldout_rises: bool = False
    """End when held-out loss has not improved for two measurements, and keep the best weights' step in the log."""


class RewardStage(TrainStage):
    """A reward model from ranked answers: all pairs of a prompt in one batch element."""

    stage: Literal["reward"]
    head_std: float | None = Field(None, ge=0)
    """Standard deviation of a fresh head's weights; null: 1 / sqrt(hidden size + 1) (Stiennon et al. 2020)."""
    demonstrations: DataSettings | None = None
    """Demonstrations that shall score 0 on average (the shift is saved with the model). null: the training answers."""


class RewardFunctionSettings(Settings):
    """A Python function that scores answers, run in subprocesses that can be killed."""

    type: Literal["function"]
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
    path: str
    """Folder of the reward model, for example `runs/my-rm/export/reward`."""


RewardSettings = Annotated[RewardModelSettings | RewardFunctionSettings, Field(discriminator="type")]
"""What gives answers their scores, chosen by `type`."""


class AdaptiveKL(Settings):
    """Ziegler et al. 2019, section 2.2: the coefficient follows a target KL."""

    target: float = Field(6.0, gt=0)
    horizon: int = Field(10000, gt=0)


class KLSettings(Settings):
    """The per-token KL penalty that is part of the reward."""

    coefficient: float = Field(0.05, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k1"
    adaptive: AdaptiveKL | None = None


class AlgorithmSettings(Settings):
    """PPO's own numbers."""

    estimator: Literal["gae"] = "gae"
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_clip: float | None = Field(0.2, gt=0)
    kl: KLSettings = KLSettings()
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Subtracted from the score of an answer that did not end."""
    reward_clip: float | None = Field(10.0, gt=0)
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    epochs: int = Field(1, ge=1)
    """Passes over a batch."""
    minibatch_size: int = Field(64, ge=1)
    """Samples an optimizer step."""


class PpoStage(StageBase):
    """PPO against a reward."""

    stage: Literal["ppo"]
    policy: ModelSettings
    reference: ModelSettings | None = None
    """null: the policy's starting weights."""
    critic: ModelSettings | None = None
    """null: started from the reward model (needs `reward.path`)."""
    reward: RewardSettings
    """What PPO maximises: a reward model or a function."""
    prompts: DataSettings
    prompts_per_step: int = Field(64, ge=1)
    samples_per_prompt: int = Field(1, ge=1)
    sampling: SamplingSettings = SamplingSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-6, schedule="constant")
    critic_optimizer: OptimizerSettings = OptimizerSettings(lr=9e-6, schedule="constant")
    gold_reward: RewardFunctionSettings | None = None
    """A second reward that training never sees (Gao et al. 2023), logged beside the first as `reward/gold`; null logs
    none."""

    @property
    def reward_path(self) -> str | None:
        """Folder of the reward model; None when the reward is a function."""
        return self.reward.path if isinstance(self.reward, RewardModelSettings) else None

    @property
    def reward_function(self) -> RewardFunctionSettings | None:
        """Function that is the reward; None when the reward is a model."""
        return self.reward if isinstance(self.reward, RewardFunctionSettings) else None


class RankStage(StageBase):
    """Sample several answers a prompt from the current policy and have them ranked."""

    stage: Literal["rank"]
    policy: ModelSettings
    prompts: DataSettings
    answers_per_prompt: tuple[int, int] = (4, 9)
    """Smallest and largest number of answers, drawn a prompt."""
    sampling: SamplingSettings = SamplingSettings()
    annotator: RewardFunctionSettings
    """Function that scores every answer; answers closer than `tie_margin` are tied."""
    tie_margin: float = Field(1e-6, ge=0)
    earlier_rankings: list[str] = []
    """Ranking files of earlier rounds, mixed in."""
    round: int = Field(1, ge=1)
    """Which repetition of the recipe the answers belong to; every ranking is marked with it."""


GeneratingStage = PpoStage | RankStage
"""A stage that has vLLM engines."""


class EvaluationPrompts(Settings):
    """Prompts that are measured on and that no stage trains on."""

    rows: Sources
    """Where the prompts come from: files by path, or a table of the built-in data set."""
    max_tokens: int = Field(512, ge=8)
    """Longest prompt, in tokens; a longer one is a bad row."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Whether a bad row stops the evaluation with file, line and reason, or is left out and counted."""
    chat_template: str | None = None
    """A Jinja file; null takes the tokenizer's own template, or ours when it has none."""

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
    gold_reward: RewardFunctionSettings
    """Function that measures the answers; no stage is trained on it."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn; above temperature 0 they are also drawn greedily."""
    rows: int = Field(300, ge=1)
    """Number of prompts that are answered."""


class StageEntry(Settings):
    """One stage of a pipeline."""

    name: str
    config: dict[str, Any]
    """The stage's own config (or the path of its YAML, relative to the pipeline's)."""
    inputs: dict[str, str | list[str]] = {}
    """`key.path` of the stage's config -> `<stage>.<output>`; of a list, the first that exists."""


class PipelineStage(Settings):
    """Stages in a row; then `rounds` times the stages of `repeat`."""

    stage: Literal["pipeline"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    run_dir: str | None = None
    seed: int = 0
    stages: list[StageEntry]
    rounds: int = Field(1, ge=1)
    repeat: list[StageEntry] = []
    evaluation: EvaluationSettings | None = None
    tracking: TrackingSettings = TrackingSettings()
    cluster: ClusterSettings = ClusterSettings()


Stage = Annotated[
    PretrainStage | SftStage | RewardStage | PpoStage | RankStage | PipelineStage, Field(discriminator="stage")
]
