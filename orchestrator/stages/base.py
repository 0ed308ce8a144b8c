"""StageSpec: what launch and the pipeline ask of a stage, import-light; heavy things are named as `module:name`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from quadriga.actors.settings import ModelSettings, PlacedRole, Role, SamplingSettings
from quadriga.data.rundir import RunDir
from quadriga.data.settings import DataSettings
from quadriga.orchestrator.rewards.base import RewardSettings
from quadriga.orchestrator.settings import StageBase, TrainStage
from quadriga.orchestrator.stages.work import Elements, Work, evenly

S = TypeVar("S", bound=StageBase)
T = TypeVar("T", bound=TrainStage)
Head = Literal["logprobs", "scalar"]
"""What a model computes per token, as in `actors/model/heads.py`."""
UnusedKey = tuple[tuple[str, ...], str]
"""Path of a key, and the reason why it has no effect."""


@dataclass(frozen=True)
class StageModel:
    """A model that a stage runs in the processes of its role; as `rollout`, in vLLM engines.

    source: the folder or shape that it starts from. key: where the config names it. trained: whether it has an
    optimizer. fresh: whether it may start from a shape, with fresh weights.
    """

    role: PlacedRole
    source: ModelSettings
    key: str
    head: Head = "logprobs"
    trained: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class StageData:
    """Rows that a stage reads.

    key: where the config names them. loader: `module:function` from (DataSettings, tokenizer, seed) to a
    `data/loading/datasets.py: Split`, as the trainer calls it. form: what the chat template must be
    able to do with them: nothing for `text`, render prompts for `prompts`, show where answers are for `answers`.
    """

    source: DataSettings
    key: str
    loader: str
    form: Literal["text", "prompts", "answers"] = "answers"


@dataclass(frozen=True)
class TokenizerSource:
    """Where a stage's tokenizer comes from.

    folder: None if the stage trains it. vocab_size: number of tokens of one that is trained.
    """

    folder: str | None
    vocab_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageSpec(ABC, Generic[S]):
    """A kind of stage: its facts, and methods that answer for its settings.

    A subclass says which models run and which rows are read; the other methods have answers that fit most stages.
    """

    settings: type[S]
    """Settings class."""
    trainer: str
    """`module:Class` of the trainer, which is imported when the stage runs: made from (settings, RunDir), it has
    `execute(progress, replay)`."""
    outputs: Mapping[str, str]
    """Name of each output -> its path in the run directory. `policy`, `critic` and `reward` are model folders."""
    list_inputs: tuple[str, ...] = ()
    """Keys of the settings that take a list of outputs of a pipeline, empty in the first round."""

    @abstractmethod
    def models(self, settings: S) -> list[StageModel]:
        """Return the models that run, first the one whose tokenizer and context count."""

    @abstractmethod
    def datasets(self, settings: S) -> list[StageData]:
        """Return the rows that are read, first those that steps are made of."""

    def sampling(self, settings: S) -> SamplingSettings | None:
        """Return how answers are drawn; None for a stage that does not generate."""
        return None

    def rewards(self, settings: S) -> list[RewardSettings]:
        """Return what scores answers."""
        return []

    def tokenizer(self, settings: S) -> TokenizerSource:
        """Return where the tokenizer comes from: the first model."""
        return TokenizerSource(self.models(settings)[0].source.path)

    def makes(self, settings: S) -> Mapping[str, str]:
        """Return the outputs that a run with these settings leaves, as `outputs`."""
        return self.outputs

    def longest(self, settings: S) -> tuple[int, str]:
        """Return the tokens of the longest sequence, and the keys that allow it."""
        data, sampling = self.datasets(settings)[0], self.sampling(settings)
        if sampling is None:
            return data.source.max_tokens, f"{data.key}.max_tokens"
        return data.source.max_tokens + sampling.max_tokens, f"{data.key}.max_tokens + sampling.max_tokens"

    def check(self, settings: S) -> None:
        """Raise UserError for settings that contradict each other."""
        return None

    def unused(self, settings: S) -> Iterator[UnusedKey]:
        """Yield the keys, changed or not, that have no effect beside the others."""
        yield from ()

    def steps(self, settings: S) -> int:
        """Return the number of steps of a run."""
        return settings.total_steps

    def has_results(self, run: RunDir) -> bool:
        """Return whether an unfinished run has results that other settings would spoil."""
        return bool(run.checkpoint_steps())

    def round_settings(self, number: int) -> dict[str, Any]:
        """Return the keys that a pipeline sets in each round. number: 0 for stages that are not repeated."""
        return {}

    def longest_element(self, settings: S) -> tuple[list[int], str]:
        """Return the lengths of the sequences of the largest likely element, and a noun for one of them."""
        return [self.datasets(settings)[0].source.max_tokens], "sequence"

    def elements(self, settings: S, rows: Sequence[Any]) -> Elements:
        """Return the elements that a step makes of loaded rows, as lengths."""
        return [list(map(len, getattr(row, "sequences", None) or [row.token_ids])) for row in rows]

    @abstractmethod
    def work(self, settings: S, elements: Elements) -> Work:
        """Return the tokens of a step, drawn evenly from the elements of the data."""

    def hosted(self, settings: S) -> list[StageModel]:
        """Return the models in processes of their roles."""
        return [model for model in self.models(settings) if model.role != "rollout"]

    def engine(self, settings: S) -> StageModel | None:
        """Return the model in vLLM engines; None for a stage that does not generate."""
        return next((model for model in self.models(settings) if model.role == "rollout"), None)


@dataclass(frozen=True, kw_only=True)
class SupervisedSpec(StageSpec[T]):
    """A stage that trains one model on rows, as `orchestrator/training/supervised.py: SupervisedStage` does."""

    loader: str
    """Loader of `data`, as in `StageData`."""
    outputs: Mapping[str, str] = field(default_factory=lambda: {"policy": "export/policy"})
    role: Role = "actor"
    """Role of the model."""
    head: Head = "logprobs"
    """Head of the model."""
    form: Literal["text", "prompts", "answers"] = "answers"
    """Form of the rows of `data`, as in `StageData`."""
    fresh: bool = False
    """Whether the model may start with fresh weights."""

    def models(self, settings: T) -> list[StageModel]:
        """Return the model that is trained."""
        return [StageModel(self.role, settings.model, "model", self.head, trained=True, fresh=self.fresh)]

    def datasets(self, settings: T) -> list[StageData]:
        """Return the rows of `data`."""
        return [StageData(settings.data, "data", self.loader, self.form)]

    def unused(self, settings: T) -> Iterator[UnusedKey]:
        """Yield `heldout_every` where nothing is held out."""
        if not settings.data.heldout and not settings.data.heldout_fraction:
            yield ("heldout_every",), "nothing is held out (`data.heldout` or `data.heldout_fraction`)"

    def work(self, settings: T, elements: Elements) -> Work:
        """Return one optimizer step."""
        return Work(updates=[evenly(elements, settings.batch_size)])
