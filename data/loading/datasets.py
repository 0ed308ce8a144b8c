"""Loaders: tokenised rows from the sources, split by prompt, with an account of every unusable row."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from quadriga.data.errors import UserError
from quadriga.data.loading import ranking_formats, rows
from quadriga.data.loading.readers import BadRow, Row, read_source
from quadriga.data.records import Message, Prompt, RankedTokens, Ranking, Tokens, with_unique_ids
from quadriga.data.settings import DataSettings, Source
from quadriga.data.tokens.chat import ChatEncoder, set_chat_template
from quadriga.data.tokens.named_templates import NAMED_TEMPLATES

MAX_ANSWERS = 16
"""Largest number of answers per prompt. They are one batch element: a single row could exhaust a rank's memory."""
BATCH = 1024
"""Number of rows that are tokenised together."""

Part = Literal["train", "heldout"]
T = TypeVar("T")


class Keyed(Protocol):
    """A parsed row; rows that share a key stay in one part of a split."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


class Unusable(ValueError):
    """A valid row from which nothing can be learned: listed among the skipped rows, never an error."""


@dataclass(slots=True)
class Cuts:
    """The account of answers that `max_tokens` shortened.

    answers: rows with answers (in rankings: answers) that were read. cut: those that lost tokens to be learned.
    without_end: those of them whose last answer lost its end token, from which nobody learns where to stop. A chat of
    several turns that is cut between two of them is cut, and keeps its ends.
    """

    answers: int = 0
    cut: int = 0
    without_end: int = 0

    def add(self, mask: Sequence[int], max_tokens: int) -> None:
        """Count a row, given the mask of what is learned from all of it. The last 1 of an answer is its end token."""
        self.answers += 1
        if 1 in mask[max_tokens:]:
            self.cut += 1
            self.without_end += mask[max_tokens - 1] == mask[max_tokens] == 1

    def sentence(self, max_tokens: int) -> str | None:
        """Return a sentence about the answers that were cut, None if there are none."""
        if not self.cut:
            return None
        return (
            f"{self.cut} of {self.answers} answers ({self.cut / self.answers:.0%}) exceed `max_tokens` = {max_tokens} "
            f"and were cut; {self.without_end} lost their end token, so they do not teach when to stop"
        )


@dataclass(slots=True)
class Split(Generic[T]):
    """Rows to train on, rows to measure on, rows that were left out, and the account of answers that were cut.

    notes: sentences for the user about the rows that were kept.
    """

    train: list[T] = field(default_factory=list)
    heldout: list[T] = field(default_factory=list)
    skipped: list[BadRow] = field(default_factory=list)
    cuts: Cuts = field(default_factory=Cuts)
    notes: list[str] = field(default_factory=list)


def document_texts(settings: DataSettings, seed: int) -> list[str]:
    """Return the training texts, from which a tokenizer is trained.

    Raises UserError as `load_documents`.
    """
    loader = _Loader(settings, seed, _one(rows.document), lambda chats: [[chat.text] for chat in chats])
    return [text for text in loader.load().train if text is not None]


def load_documents(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> Split[Tokens]:
    """Load plain text as BOS, text, EOS, cut into pieces of at most `max_tokens`; loss on every token but the first.

    There is a BOS where the tokenizer writes one before plain text. A piece begins with the last token of the piece
    before, so that every token is predicted exactly once.
    Raises UserError for missing files, bad rows (unless they are skipped) and data sets without a usable row.
    """
    encoder = _encoder(settings, tokenizer)
    return _Loader(
        settings, seed, _one(rows.document), lambda chats: _texts(encoder, chats, settings.max_tokens)
    ).load()


def load_demonstrations(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> Split[Tokens]:
    """Load chats with loss on the assistant's tokens and end tokens, and plain text as `load_documents` does.

    Where the template rewrites earlier answers as a chat continues, only the last one is learned, which a note counts.
    Chats longer than `max_tokens` are cut, which removes their end token; `cuts` counts them.
    Raises UserError as `load_documents`.
    """
    encoder, cuts = _encoder(settings, tokenizer), Cuts()
    rewritten: list[int] = []

    def encode(chats: list[rows.Chat]) -> "list[list[Tokens] | ValueError]":
        texts = iter(_texts(encoder, [chat for chat in chats if chat.text is not None], settings.max_tokens))
        chatted = [chat for chat in chats if chat.text is None]
        dialogues = iter(_chats(encoder, chatted, settings.max_tokens, cuts, rewritten))
        return [next(dialogues if chat.text is None else texts) for chat in chats]

    split = _Loader(settings, seed, _one(rows.demonstration), encode, cuts).load()
    if rewritten:
        names = ", ".join(f"`{name}`" for name in NAMED_TEMPLATES)
        split.notes.append(
            "The chat template writes earlier answers in another form than they are generated in, so only the last "
            f"answer is learned in {len(rewritten)} chats; {sum(rewritten)} earlier answers are not. For some families "
            f"`chat_template` takes the name of a template that keeps them: {names}."
        )
    return split


def load_rankings(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> Split[RankedTokens]:
    """Load ranked answers in any of the ranking formats, each answer tokenised with its prompt.

    Answers that exceed `max_tokens` are cut, and counted in `cuts`. Of equal answers in one group one is kept; equal
    answers in different groups make a bad row. Rankings without a pair to compare are listed in `skipped`, never an
    error.
    Raises UserError as `load_documents`.
    """
    encoder, cuts = _encoder(settings, tokenizer), Cuts()
    return _Loader(
        settings, seed, _parse_rankings, lambda items: _rankings(encoder, items, settings.max_tokens, cuts), cuts
    ).load()


def load_prompts(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> Split[Prompt]:
    """Load the prompts of the policy. Ids come from the rows or from their content; repeated ids get a number.

    Raises UserError as `load_documents`.
    """
    encoder = _encoder(settings, tokenizer)
    split = _Loader(
        settings, seed, _one(rows.prompt), lambda chats: _prompts(encoder, chats, settings.max_tokens)
    ).load()
    split.train, split.heldout = with_unique_ids(split.train), with_unique_ids(split.heldout)
    return split


def _encoder(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> ChatEncoder:
    set_chat_template(tokenizer, settings.chat_template)
    return ChatEncoder(tokenizer)


class _Loader(Generic[K, T]):
    """Loader of one kind of row: reads, parses, splits and encodes.

    `parse` gives the items of a row (a few in rankings, else one), `encode` the results of each item of a batch. Both
    put a ValueError, with the reason, where an item cannot be used. cuts: what `encode` counts in.
    """

    def __init__(
        self,
        settings: DataSettings,
        seed: int,
        parse: "Callable[[dict[str, Any]], list[K | ValueError]]",
        encode: "Callable[[list[K]], list[list[T] | ValueError]]",
        cuts: Cuts | None = None,
    ):
        self.settings, self.seed, self.parse, self.encode = settings, seed, parse, encode
        self.split: Split[T] = Split(cuts=cuts or Cuts())

    def load(self) -> Split[T]:
        """Load all sources that the settings name."""
        for source in self.settings.train:
            self._add(source, None)
        for source in self.settings.heldout:
            self._add(source, "heldout")
        self._refuse_empty()
        return self.split

    def _add(self, source: Source, part: Part | None) -> None:
        if source.split and not self.settings.heldout_fraction:
            raise UserError(
                f"`split: {source.split}` of {_name(source)} has no effect without `heldout_fraction`. Set it, or "
                "leave `split` out."
            )
        chosen = [item for item in self._parsed(source) if source.split in (None, self._part(item[1]))]
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            for (row, item), result in zip(batch, self.encode([item for _, item in batch]), strict=True):
                if isinstance(result, ValueError):
                    self._refuse(row, result)
                else:
                    target = part or ("train" if source.split else self._part(item))
                    getattr(self.split, target).extend(result * source.repeat)

    def _parsed(self, source: Source) -> Iterator[tuple[Row, K]]:
        for row in read_source(source):
            if isinstance(row, BadRow):
                self._refuse(row, ValueError(row.reason))
                continue
            try:
                items = self.parse(row.values)
            except ValueError as error:
                items = [error]
            for item in items:
                if isinstance(item, ValueError):
                    self._refuse(row, item)
                else:
                    yield row, item

    def _part(self, item: K) -> Part:
        """Choose the part by a hash of prompt and seed alone, so that it does not depend on the other rows."""
        digest = hashlib.blake2b(json.dumps([self.seed, item.key]).encode(), digest_size=8).digest()
        return "heldout" if int.from_bytes(digest, "big") < self.settings.heldout_fraction * 2**64 else "train"

    def _refuse(self, row: Row | BadRow, error: ValueError) -> None:
        bad = BadRow(row.file, row.line, str(error))
        if self.settings.on_bad_row == "error" and not isinstance(error, Unusable):
            raise UserError(f"{bad}. Correct the row, or set `on_bad_row: skip` to leave such rows out and list them.")
        self.split.skipped.append(bad)

    def _refuse_empty(self) -> None:
        split, skipped = self.split, self.split.skipped
        if not split.train:
            names = ", ".join(_name(source) for source in self.settings.train)
            reason = (
                f"each row was left out ({len(skipped)} in all), the first for: {skipped[0]}" if skipped else "no rows"
            )
            raise UserError(f"The data set {names} is empty: {reason}. Check the path, `columns` and `split`.")
        sources = self.settings.heldout or [source for source in self.settings.train if source.split is None]
        if not split.heldout and sources and (self.settings.heldout or self.settings.heldout_fraction):
            raise UserError(
                f"No rows are held out: {len(split.train)} training rows, `heldout_fraction` at "
                f"{self.settings.heldout_fraction}. Raise it, or name separate files in `heldout`."
            )


def _one(parse: Callable[[dict[str, Any]], K]) -> "Callable[[dict[str, Any]], list[K | ValueError]]":
    return lambda values: [parse(values)]


def _name(source: Source) -> str:
    return str(source.path or source.builtin)


def _texts(encoder: ChatEncoder, chats: list[rows.Chat], max_tokens: int) -> "list[list[Tokens] | ValueError]":
    if not chats:
        return []
    # The text of a special token inside a document is not that token.
    batch = encoder.tokenizer([chat.text for chat in chats], add_special_tokens=False, split_special_tokens=True)
    before = [encoder.bos] if encoder.bos is not None and encoder.starts_with_bos else []
    results: list[list[Tokens] | ValueError] = []
    for chat, ids in zip(chats, batch["input_ids"], strict=True):
        whole = [*before, *ids, encoder.eos]
        starts = range(0, max(len(whole) - 1, 1), max_tokens - 1)
        pieces = [whole[start : start + max_tokens] for start in starts]
        results.append([Tokens(piece, [0] + [1] * (len(piece) - 1), chat.meta) for piece in pieces])
    return results


def _chats(
    encoder: ChatEncoder, chats: list[rows.Chat], max_tokens: int, cuts: Cuts, rewritten: list[int]
) -> "list[list[Tokens] | ValueError]":
    """Encode demonstrations. rewritten: gets the number of answers that are not learned, of each chat that has any."""
    rendered = [_attempt(encoder.render, chat.messages) for chat in chats]
    encoded = iter(encoder.encode([chat for chat in rendered if not isinstance(chat, ValueError)]))
    results: list[list[Tokens] | ValueError] = []
    for chat, attempt in zip(chats, rendered, strict=True):
        if isinstance(attempt, ValueError):
            results.append(attempt)
            continue
        ids, mask = next(encoded)
        if attempt.rewritten:
            rewritten.append(attempt.rewritten)
        if 1 in mask[:max_tokens]:
            cuts.add(mask, max_tokens)
            results.append([Tokens(ids[:max_tokens], mask[:max_tokens], chat.meta)])
        else:
            results.append(_too_long(mask.index(1), max_tokens))
    return results


def _prompts(encoder: ChatEncoder, chats: list[rows.Chat], max_tokens: int) -> "list[list[Prompt] | ValueError]":
    rendered = [_attempt(encoder.render_prompt, chat.messages) for chat in chats]
    encoded = iter(encoder.encode_prompts([text for text in rendered if isinstance(text, str)]))
    results: list[list[Prompt] | ValueError] = []
    for chat, attempt in zip(chats, rendered, strict=True):
        if isinstance(attempt, ValueError):
            results.append(attempt)
            continue
        ids = next(encoded)
        meta = dict(chat.meta)
        id_ = meta.pop("id", None)
        name = rows.content_id(chat.messages) if id_ is None else str(id_)
        fits = len(ids) < max_tokens
        results.append([Prompt(name, chat.messages, ids, meta)] if fits else _too_long(len(ids), max_tokens))
    return results


class _PolicyAnswers(ChatEncoder):
    """Renders answers that a policy gave: a special token in one is a token that it chose, and PPO scores it so."""

    def _check(self, messages: list[Message], last: str | None = None, may_be_empty: bool = False) -> None:
        answer = messages[-1] | {"content": self.special.sub("", messages[-1]["content"])}
        super()._check([*messages[:-1], answer], last=last, may_be_empty=may_be_empty)


@dataclass(slots=True)
class _ParsedRanking:
    ranking: Ranking

    @property
    def key(self) -> str:
        return rows.ranking_key(self.ranking)


def _parse_rankings(values: dict[str, Any]) -> "list[_ParsedRanking | ValueError]":
    """Parse a row in any of the ranking formats; one row of some of them holds several rankings."""
    rankings = ranking_formats.read(values)
    if not rankings:
        raise Unusable("no two ranked answers")
    return [_attempt(_usable, ranking) for ranking in rankings]


def _usable(ranking: Ranking) -> _ParsedRanking:
    if len(ranking.responses) > MAX_ANSWERS:
        raise ValueError(f"{len(ranking.responses)} answers to one prompt; at most {MAX_ANSWERS} fit one batch element")
    if ranking.not_rankable:
        raise Unusable("marked not rankable")
    if not ranking.pairs():
        raise Unusable("all answers are tied: nothing to compare")
    return _ParsedRanking(ranking)


def _rankings(
    encoder: ChatEncoder, items: list[_ParsedRanking], max_tokens: int, cuts: Cuts
) -> "list[list[RankedTokens] | ValueError]":
    answers = _PolicyAnswers(encoder.tokenizer)

    def render(ranking: Ranking) -> Any:
        # A policy may give an empty answer: the reward model must learn its value.
        chats = [[*ranking.messages, {"role": "assistant", "content": r.text}] for r in ranking.responses]
        own = answers if ranking.source == "ai" else encoder
        return encoder.render_prompt(ranking.messages), [own.render(chat, may_be_empty=True) for chat in chats]

    rendered = [_attempt(render, item.ranking) for item in items]
    good = [attempt for attempt in rendered if not isinstance(attempt, ValueError)]
    prompts = iter(encoder.encode_prompts([prompt for prompt, _ in good]))
    chats = iter(encoder.encode([chat for _, chats in good for chat in chats]))
    results: list[list[RankedTokens] | ValueError] = []
    for item, attempt in zip(items, rendered, strict=True):
        if isinstance(attempt, ValueError):
            results.append(attempt)
            continue
        prompt, answered = next(prompts), [next(chats) for _ in item.ranking.responses]
        if any(ids[: len(prompt)] != prompt for ids, _ in answered):
            raise UserError(
                "With this chat template the tokens of a prompt change when an answer follows. End the generation "
                "prompt with a special token, or give another template with `chat_template`."
            )
        sequences = [ids[:max_tokens] for ids, _ in answered]
        result = _attempt_list(_ranked, item.ranking, prompt, sequences, max_tokens)
        if not isinstance(result, ValueError):
            for _, mask in answered:
                cuts.add(mask, max_tokens)
        results.append(result)
    return results


def _ranked(ranking: Ranking, prompt: list[int], sequences: list[list[int]], max_tokens: int) -> RankedTokens:
    if len(prompt) >= max_tokens:
        raise _too_long(len(prompt), max_tokens)
    rank_of: dict[tuple[int, ...], int] = {}
    for ids, rank in zip(sequences, ranking.ranks, strict=True):
        if rank_of.setdefault(tuple(ids), rank) != rank:
            raise ValueError("two answers are the same (within `max_tokens`), but ranked differently")
    if len(set(rank_of.values())) < 2:
        raise Unusable("all answers are tied: nothing to compare")
    meta = ranking.meta | {"source": ranking.source, "iteration": ranking.iteration}
    return RankedTokens(ranking.id, [list(ids) for ids in rank_of], list(rank_of.values()), len(prompt), meta)


def _too_long(tokens: int, max_tokens: int) -> ValueError:
    return ValueError(f"prompt longer than the context: {tokens} tokens, with `max_tokens` at {max_tokens}")


def _attempt(function: Callable[..., T], *arguments: Any) -> T | ValueError:
    try:
        return function(*arguments)
    except ValueError as error:
        return error


def _attempt_list(function: Callable[..., T], *arguments: Any) -> list[T] | ValueError:
    result = _attempt(function, *arguments)
    return result if isinstance(result, ValueError) else [result]
