"""The pre-training stage: its settings."""

from typing import Literal

from pydantic import Field

from quadriga.data.settings import Settings
from quadriga.orchestrator.settings import TrainStage


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
