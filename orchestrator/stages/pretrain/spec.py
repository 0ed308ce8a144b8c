"""The pre-training stage: its settings and its StageSpec."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from quadriga.data.model_path import ModelPath
from quadriga.data.settings import Settings
from quadriga.orchestrator.settings import TrainStage
from quadriga.orchestrator.stages.base import SupervisedSpec, TokenizerSource, UnusedKey
from quadriga.orchestrator.stages.pretrain.rows import packed_documents
from quadriga.orchestrator.stages.work import Elements


class TokenizerSettings(Settings):
    """The tokenizer that pre-training makes: byte-level BPE."""

    path: ModelPath | None = None
    """Folder of an existing tokenizer; null trains one on the training rows."""
    vocab_size: int = Field(1024, ge=300)
    """Number of tokens of a tokenizer that is trained here. Has no effect with `path`."""


class PretrainStage(TrainStage):
    """Next-token prediction on packed documents."""

    stage: Literal["pretrain"]
    """Kind of stage."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """Tokenizer of a model with fresh weights."""


class PretrainSpec(SupervisedSpec[PretrainStage]):
    """The first stage of a recipe: it may make weights and tokenizer itself."""

    def tokenizer(self, settings: PretrainStage) -> TokenizerSource:
        """Return the tokenizer that the settings name, the model's, or one that is trained."""
        return TokenizerSource(settings.tokenizer.path or settings.model.path, settings.tokenizer.vocab_size)

    def unused(self, settings: PretrainStage) -> Iterator[UnusedKey]:
        """Yield the size of a tokenizer that is not trained here."""
        yield from super().unused(settings)
        if settings.tokenizer.path is not None:
            yield ("tokenizer", "vocab_size"), "`tokenizer.path` names an existing tokenizer"

    def longest_element(self, settings: PretrainStage) -> tuple[list[int], str]:
        """Return a full row."""
        return [settings.data.max_tokens], "row"

    def elements(self, settings: PretrainStage, rows: Sequence[Any]) -> Elements:
        """Return the rows that the documents are packed into."""
        packed = packed_documents(list(rows), settings.data.max_tokens, settings.seed)
        return [[len(document.token_ids) for document in row] for row in packed]


PRETRAIN = PretrainSpec(
    settings=PretrainStage,
    trainer="quadriga.orchestrator.stages.pretrain.trainer:Pretrain",
    loader="quadriga.data.loading.datasets:load_documents",
    form="text",
    fresh=True,
)
