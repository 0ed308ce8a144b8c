"""Settings of the data layer: sources of rows, their split and the handling of bad rows."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _check_seed(value: Any) -> Any:
    """Raise ValueError, with a sentence, for an integer that is not a seed."""
    if isinstance(value, int) and not 0 <= value < SEED_LIMIT:
        raise ValueError(
            f"{value} is not a seed: a seed is a whole number from 0 to 2^63 - 1, which torch and numpy both take, and "
            "the same seed gives the same run; there is no number for a random one"
        )
    return value


SEED_LIMIT = 2**63
Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT), BeforeValidator(_check_seed)]
"""A seed: 0 to 2^63 - 1."""


class Source(Settings):
    """One source of rows: files (`path`), or a table of the built-in pocket assistant (`builtin`)."""

    path: str | None = None
    """Path of a .jsonl, .json, .parquet or text file, a glob of them, or the folder of a Hugging Face data set saved to
    disk; null when `builtin` is set."""
    builtin: (
        Literal["assistant.text", "assistant.demonstrations", "assistant.prompts", "assistant.heldout_prompts"] | None
    ) = None
    """Name of a table of the built-in pocket-assistant data set; null when `path` is set."""
    rows: int | None = Field(None, ge=1)
    """Number of rows to read from the start of a path, or to generate for a built-in table, which needs it; null reads
    all rows of the path."""
    seed: Seed = 0
    """Seed of the built-in table; it has no effect on a path."""
    columns: dict[str, str] = {}
    """Map from the column names that Quadriga expects to the names in the file; columns left out keep their names."""
    split: Literal["train", "heldout"] | None = None
    """Part of the `heldout_fraction` split of this source to read, all of it for training; null reads both parts, each
    for its purpose."""
    repeat: int = Field(1, ge=1)
    """Number of times that each row appears in an epoch, to weight the sources of a mixture."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give exactly one of `path` and `builtin`")
        return self


def _as_sources(value: Any) -> Any:
    """Accept `path.jsonl`, `{path: ...}` or a list of either."""
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]


class DataSettings(Settings):
    """Training rows, held-out rows and how they become tokens."""

    train: Sources
    """Sources of training rows: a path, a source or a list of either."""
    heldout: Annotated[list[Source], BeforeValidator(_as_sources)] = []
    """Sources of held-out rows, which are measured on and never trained on; an empty list leaves the choice to
    `heldout_fraction`."""
    heldout_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the prompts in `train`, 0 to 1, whose rows are held out, chosen by a hash of prompt and seed; 0 holds
    none of them out."""
    max_tokens: int = Field(512, ge=8)
    """Longest sequence in tokens, prompt and answer together. Longer prompts are bad rows, longer answers are cut,
    longer documents are split."""
    on_bad_row: Literal["error", "skip"] = "error"
    """How rows that cannot be used are handled: `error` stops with file, line and reason, `skip` leaves them out and
    lists them in logs/skipped-rows.txt."""
    chat_template: str | None = None
    """Path of a Jinja chat template, or the name of one that comes with Quadriga (`qwen3`); null uses the tokenizer's
    template, or a built-in one where it has none."""

    @model_validator(mode="after")
    def _one_heldout(self) -> "DataSettings":
        if self.heldout and self.heldout_fraction:
            raise ValueError("`heldout` and `heldout_fraction` both choose the held-out rows; keep one")
        return self
