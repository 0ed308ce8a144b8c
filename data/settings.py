"""Settings of the data layer: where rows come from and what happens to bad ones."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Settings):
    """One place rows come from: files by path, or the built-in pocket assistant."""

    path: str | None = None
    """A .jsonl, .json or .parquet file, a glob of them, a text file, or a Hugging Face data set saved to disk."""
    builtin: (
        Literal["assistant.text", "assistant.demonstrations", "assistant.prompts", "assistant.heldout_prompts"] | None
    ) = None
    """A table of the built-in pocket-assistant data set instead of a path."""
    rows: int | None = Field(None, ge=1)
    """Use only the first rows of a path; the number of rows generated for a built-in table."""
    seed: int = 0
    """Seed of the built-in generator."""
    columns: dict[str, str] = {}
    """Renames: our column name -> the file's, for files that use other names."""
    split: Literal["train", "heldout"] | None = None
    """Which part of a `heldout_fraction` split of this source to read; null reads all of it."""
    repeat: int = Field(1, ge=1)
    """How often each row appears in an epoch (mixing weight)."""

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
    heldout: Annotated[list[Source], BeforeValidator(_as_sources)] = []
    """Rows never trained on; empty: `heldout_fraction` of `train`, split by prompt."""
    heldout_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    max_tokens: int = Field(512, ge=8)
    """Longest sequence, prompt and answer together. Longer prompts are bad rows, answers are cut, documents split."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops with file, line and reason; `skip` counts bad rows and lists them in the log."""
    chat_template: str | None = None
    """A Jinja file; null takes the tokenizer's own template, or ours when it has none."""

    @model_validator(mode="after")
    def _one_heldout(self) -> "DataSettings":
        if self.heldout and self.heldout_fraction:
            raise ValueError("`heldout` and `heldout_fraction` both say what is held out; keep one")
        return self
