"""Preview: prints the first rows of a stage as the model sees them, with tokens, chat template and loss mask."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from quadriga.data.loading import datasets
from quadriga.data.records import Prompt, RankedTokens, Tokens
from quadriga.data.settings import DataSettings, Source
from quadriga.data.tokens.tokenizer import load_tokenizer, train_tokenizer
from quadriga.launch.checks.model import load_rows, made_later
from quadriga.launch.config.load import is_placeholder, single_stages
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.registry import AnyStage, spec_of

LEARNT, GIVEN = "green", "dim"
"""Styles of the tokens inside and outside the loss mask."""


class Preview:
    """Prints the first rows of stages.

    rows: rows to show per stage. scan: rows to read per source.
    """

    def __init__(self, console: Console, rows: int, scan: int):
        self.console, self.rows, self.scan = console, rows, scan
        self.trained: PreTrainedTokenizerBase | None = None
        """The tokenizer of the last stage that trains one, which the stages after it use."""

    def show(self, stage: AnyStage) -> None:
        """Print rows of a stage, or of every stage of a pipeline. Raises UserError as the loaders do."""
        for name, single in single_stages(stage):
            self._show_stage(single, name)

    def _show_stage(self, stage: StageBase, name: str) -> None:
        self.console.rule(f"{name} ({stage.stage})", align="left")
        spec = spec_of(stage)
        data = spec.datasets(stage)[0]
        if made_later(data.source):
            sources = [*data.source.train, *data.source.heldout]
            origin = next(source.path for source in sources if is_placeholder(source.path or ""))
            self.console.print(f"Rows come from {origin}, an earlier stage's output.", markup=False)
            return
        with self.console.status("Reading"):
            tokenizer = self._tokenizer(stage)
            if tokenizer is None:
                self.console.print("The model comes from an earlier stage that has not run: no tokenizer yet.")
                return
            split = load_rows(data, self._limited(data.source), tokenizer, stage.seed)
        for row in split.train[: self.rows]:
            for part in _render(row, tokenizer):
                self.console.print(part)
        self._show_counts(split, [length for element in spec.elements(stage, split.train) for length in element])
        if cut := split.cuts.sentence(data.source.max_tokens):
            self.console.print(f"{cut}.", style="yellow", highlight=False, markup=False)

    def _tokenizer(self, stage: StageBase) -> PreTrainedTokenizerBase | None:
        """Return the stage's tokenizer; for a stage that trains one, a tokenizer of the rows read here."""
        spec = spec_of(stage)
        source = spec.tokenizer(stage)
        if source.folder is not None and not is_placeholder(source.folder):
            return load_tokenizer(source.folder)
        if source.folder is None and source.vocab_size is not None:
            texts = datasets.document_texts(self._limited(spec.datasets(stage)[0].source), stage.seed)
            self.trained = train_tokenizer(texts, source.vocab_size)
            self.console.print(f"A tokenizer of {len(self.trained)} tokens, trained on {len(texts)} rows to show them:")
        return self.trained

    def _limited(self, data: DataSettings) -> DataSettings:
        def cut(source: Source) -> Source:
            if source.builtin and source.rows is None:
                return source  # an error that the reader explains
            return source.model_copy(update={"rows": min(self.scan, source.rows or self.scan)})

        train, heldout = ([cut(source) for source in sources] for sources in (data.train, data.heldout))
        return data.model_copy(update={"train": train, "heldout": heldout})

    def _show_counts(self, split: datasets.Split[Any], lengths: list[int]) -> None:
        text = f"{len(split.train)} training rows read, {len(split.heldout)} held out, {len(split.skipped)} left out; "
        text += f"{sum(lengths) / len(lengths):.0f} tokens on average, {max(lengths)} at most"
        masks = [row.loss_mask for row in split.train if isinstance(row, Tokens)]
        if masks:
            text += f"; loss on {sum(map(sum, masks)) / sum(map(len, masks)):.0%} of them"
        self.console.print(text + ".", highlight=False)
        for note in split.notes:
            self.console.print(note, style="yellow", markup=False)
        for bad in split.skipped[:3]:
            self.console.print(f"left out: {bad}", style="yellow", markup=False)


def _render(row: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Text | Table]:
    """Yield a row as coloured text, and a row of text or demonstrations as a table of its tokens too."""
    if isinstance(row, Prompt):
        yield Text.assemble((f"prompt {row.id}: ", "bold"), _text(row.token_ids, [0] * len(row.token_ids), tokenizer))
    elif isinstance(row, RankedTokens):
        yield Text(f"ranking {row.id}", "bold")
        for rank, ids in sorted(zip(row.ranks, row.sequences, strict=True)):
            answer = [int(position >= row.prompt_length) for position in range(len(ids))]
            yield Text.assemble((f"  {rank + 1}. ", "bold"), _text(ids, answer, tokenizer))
    elif isinstance(row, Tokens):
        yield _text(row.token_ids, row.loss_mask, tokenizer)
        yield _table(row, tokenizer)
    else:
        yield Text(str(row))


def _text(ids: list[int], mask: list[int], tokenizer: PreTrainedTokenizerBase) -> Text:
    """Return the text of the tokens, those whose mask is 1 in colour and the others dim, decoded span by span."""
    text, start = Text(), 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            text.append(tokenizer.decode(ids[start:end]), LEARNT if mask[start] else GIVEN)
            start = end
    return text


def _table(row: Tokens, tokenizer: PreTrainedTokenizerBase) -> Table:
    """Return a table of the tokens at both ends and wherever the loss mask changes, where mistakes are likely."""
    mask, end = row.loss_mask, len(row.token_ids)
    changes = [position for position in range(1, end) if mask[position] != mask[position - 1]]
    shown = sorted({at for edge in [0, *changes, end] for at in range(max(0, edge - 5), min(end, edge + 5))})
    table = Table("position", "id", "token", "loss", box=None, padding=(0, 1))
    for before, position in zip([-1, *shown], shown, strict=False):
        if position != before + 1:
            table.add_row("...")
        token, style = row.token_ids[position], LEARNT if mask[position] else GIVEN
        word = tokenizer.decode([token]) or tokenizer.convert_ids_to_tokens(token)
        table.add_row(str(position), str(token), Text(repr(word), style), Text(str(mask[position]), style))
    return table
