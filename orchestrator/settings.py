"""Settings of the stages: one class per stage, named by its `stage:` key."""

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
    """Name as in metrics.jsonl; its value is that of the step which the checkpoint follows."""
    mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value is the best."""


class CheckpointSettings(Settings):
    """When a stage saves what it needs to go on. It always does at the end and on Ctrl-C or SIGTERM."""

    every_steps: int | None = Field(None, ge=1)
    """Number of steps between checkpoints; null saves at the end only."""
    every_minutes: float | None = Field(None, gt=0)
    """Minutes of wall clock between checkpoints, beside `every_steps`; null disregards the clock."""
    keep: int = Field(1, ge=1)
    """Number of newest checkpoints that are kept."""
    keep_best: BestSettings | None = None
    """Metric whose best checkpoint is kept whatever its age; null keeps the newest only."""


Action = Literal["kill", "stop", "slow", "raise", "disconnect"]
"""SIGKILL; SIGSTOP; SIGSTOP, and SIGCONT after some seconds; an exception; all TCP connections shut down."""

FaultTarget = Literal["actor", "critic", "reference", "reward", "rollout", "driver"]


class PlannedFault(Settings):
    """One fault, once."""

    action: Action
    """What happens: SIGKILL; SIGSTOP; SIGSTOP and, after `seconds`, SIGCONT; an exception; all TCP connections shut
    down."""
    role: FaultTarget
    """Role of the process that it happens to."""
    rank: int = Field(0, ge=0)
    """Rank of the model's process, or number of the rollout worker."""
    step: int = Field(ge=1)
    """Step during which it happens, from 1."""
    phase: str | None = None
    """Part of the step as in `timing_s/`, or `checkpoint`; null takes the beginning of the step."""
    after: float = Field(0.0, ge=0)
    """Delay in seconds after the phase starts."""
    seconds: float = Field(5.0, gt=0)
    """Duration of a `slow` fault, in seconds."""

    @model_validator(mode="after")
    def _driver_is_killed(self) -> "PlannedFault":
        if self.role == "driver" and self.action != "kill":
            raise ValueError("the driver can only be killed: it is what notes the others' faults")
        return self


class RandomFaults(Settings):
    """Faults at random moments."""

    seed: int = 0
    """Seed of the moments: the same seed gives the same faults."""
    rate: float = Field(0.1, ge=0, le=1)
    """Probability of a fault per step."""
    actions: list[Action] = Field(["kill"], min_length=1)
    """What may happen, as in `planned`."""
    roles: list[FaultTarget] = Field(["actor", "critic", "reference", "reward", "rollout"], min_length=1)
    """Roles that it may happen to. The driver, where it is among them, is killed whatever the action."""
    within: float = Field(2.0, ge=0)
    """Longest delay after the step starts, in seconds."""


class FaultSettings(Settings):
    """A rehearsal: faults to have on purpose. Each is recorded in run.json as it happens, and happens once."""

    planned: list[PlannedFault] = []
    """Faults at chosen moments."""
    random: RandomFaults | None = None
    """Faults at random moments; null has none."""


class TrackingSettings(Settings):
    """metrics.jsonl is always written; W&B beside it."""

    wandb: bool = True
    """Whether W&B gets the run too. Without WANDB_API_KEY in the environment it is written offline, to be synced
    later."""
    project: str = "quadriga"
    """W&B project."""
    group: str | None = None
    """W&B group; null groups the stages of a pipeline under its name and leaves a single stage alone."""
    samples: int = Field(8, ge=0)
    """Number of answers per step that are written to samples/ and to the W&B table."""


class StageBase(Settings):
    """Keys that every stage has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: letters, digits, dots, dashes and underscores."""
    run_dir: str | None = None
    """Folder for everything that the run writes; null takes runs/<name>."""
    seed: int = 0
    """Seed of data order, fresh weights and sampling."""
    total_steps: int = Field(100, ge=1)
    """Number of optimizer steps (PPO: of rounds of generate and update)."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """When the run saves."""
    tracking: TrackingSettings = TrackingSettings()
    """What the run logs besides metrics.jsonl."""
    cluster: ClusterSettings = ClusterSettings()
    """Where the run runs: hardware, processes, deadlines."""
    faults: FaultSettings = FaultSettings()
    """Faults that are injected on purpose."""


class TrainStage(StageBase):
    """Keys of the supervised stages."""

    model: ModelSettings
    """Model that training starts from."""
    data: DataSettings
    """Training and held-out rows."""
    batch_size: int = Field(32, ge=1)
    """Sequences per optimizer step (reward: prompts with all their answers; pre-training: packed rows)."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimizer and learning-rate schedule."""
    heldout_every: int | None = Field(None, ge=1)
    """Number of steps between measurements on held-out rows; null measures at the end only."""


class TokenizerSettings(Settings):
    """The tokenizer that pre-training makes: byte-level BPE."""

    path: str | None = None
    """Folder of an existing tokenizer; null trains one on the training rows."""
    vocab_size: int = Field(1024, ge=300)
    """Number of tokens of a tokenizer that is trained here. Has no effect with `path`."""


class PretrainStage(TrainStage):
    """Next-token prediction on packed documents."""

    stage: Literal["pretrain"]
    """Kind of stage."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """Tokenizer of a model with fresh weights."""


class SftStage(TrainStage):
    """Fine-tuning on demonstrations: loss on the assistant's tokens only, end token included."""

    stage: Literal["sft"]
    """Kind of stage."""
    stop_when_heldout_rises: bool = False
    """Whether the stage ends when held-out loss has not improved for two measurements."""


class RewardStage(TrainStage):
    """A reward model from ranked answers: all pairs of a prompt in one batch element."""

    stage: Literal["reward"]
    """Kind of stage."""
    head_std: float | None = Field(None, ge=0)
    """Standard deviation of a fresh head's weights; null takes 1 / sqrt(hidden size + 1) (Stiennon et al. 2020)."""
    demonstrations: DataSettings | None = None
    """Demonstrations whose mean score is calibrated to 0 (the shift is saved with the model); null takes the training
    answers."""


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


class AdaptiveKL(Settings):
    """Ziegler et al. 2019, section 2.2: the coefficient follows a target KL."""

    target: float = Field(6.0, gt=0)
    """KL per sample that the coefficient steers to, in nats."""
    horizon: int = Field(10000, gt=0)
    """Number of samples over which the coefficient adapts."""


class KLSettings(Settings):
    """The per-token KL penalty that is part of the reward."""

    coefficient: float = Field(0.05, ge=0)
    """Weight of the penalty per nat; with `adaptive` its starting value."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL per token (Schulman 2020): k1 is unbiased, k2 is biased and never negative, k3 is both
    unbiased and never negative."""
    adaptive: AdaptiveKL | None = None
    """Target that the coefficient follows; null keeps it fixed."""


class AlgorithmSettings(Settings):
    """PPO's own numbers."""

    estimator: Literal["gae"] = "gae"
    """Advantage estimator."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda: 1 has no bias from the critic, 0 the least variance."""
    clip: float = Field(0.2, gt=0)
    """Distance from 1 beyond which a probability ratio earns nothing more."""
    value_clip: float | None = Field(0.2, gt=0)
    """Largest change of a value per update that the value loss rewards; null does not clip."""
    kl: KLSettings = KLSettings()
    """Penalty for moving away from the reference."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Amount subtracted from the score of an answer that did not end."""
    reward_clip: float | None = Field(10.0, gt=0)
    """Largest absolute score; null does not clip."""
    whiten_rewards: bool = False
    """Whether token rewards are scaled to variance 1 over the batch, their mean kept."""
    whiten_advantages: bool = True
    """Whether advantages are shifted to mean 0 and scaled to variance 1 over the batch."""
    epochs: int = Field(1, ge=1)
    """Number of passes over a batch of samples."""
    minibatch_size: int = Field(64, ge=1)
    """Samples per optimizer step."""


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
    reward: RewardSettings
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
    annotator: RewardFunctionSettings
    """Function that scores every answer; answers closer than `tie_margin` are tied."""
    tie_margin: float = Field(1e-6, ge=0)
    """Difference of scores up to which two answers are tied."""
    earlier_rankings: list[str] = []
    """Files of rankings of earlier rounds, mixed in."""
    round: int = Field(1, ge=1)
    """Repetition of the recipe that the answers belong to; every ranking is marked with it."""


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
    seed: int = 0
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


Stage = Annotated[
    PretrainStage | SftStage | RewardStage | PpoStage | RankStage | PipelineStage, Field(discriminator="stage")
]
