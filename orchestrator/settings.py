"""Settings that stages share: checkpoints, tracking, faults, and the keys that every stage has."""

from typing import Literal

from pydantic import Field, model_validator

from quadriga.actors.settings import (
    ClusterSettings,
    ModelSettings,
    OptimizerSettings,
)
from quadriga.data.settings import DataSettings, Seed, Settings


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

    seed: Seed = 0
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
    """Whether W&B gets the run too. Without a key (`wandb login`, or WANDB_API_KEY in the environment) it is written
    offline, to be synced later."""
    project: str | None = None
    """W&B project; null takes WANDB_PROJECT of the environment, else `quadriga`."""
    group: str | None = None
    """W&B group; null groups the stages of a pipeline under its name and leaves a single stage alone."""
    samples: int = Field(8, ge=0)
    """Number of answers per step that are written to samples/ and to the W&B table."""


class StageBase(Settings):
    """Keys that every stage has."""

    stage: str
    """Kind of stage: one of ours by its name, or a user's as `module:SPEC`."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: letters, digits, dots, dashes and underscores."""
    run_dir: str | None = None
    """Folder for everything that the run writes; null takes runs/<name>."""
    seed: Seed = 0
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
