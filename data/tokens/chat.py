"""Chat encoding: chats to tokens and a loss mask by a chat template, with checks that the mask is right."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from quadriga.data.errors import UserError, nearest
from quadriga.data.records import Message, check_messages
from quadriga.data.tokens import clock
from quadriga.data.tokens.named_templates import NAMED_TEMPLATES

ROLE_TOKENS = ("<user>", "<assistant>", "<system>")

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<' + message['role'] + '>' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + eos_token }}{% endgeneration %}
    {%- else %}
        {{- message['content'] | trim }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<assistant>' }}{% endif %}"""
"""Template of the tokenizers trained here: there is one token per role."""

TEXT_TEMPLATE = """\
{%- if bos_token %}{{- bos_token }}{% endif %}
{%- for message in messages %}
    {%- if not loop.first %}{{- '\\n' }}{% endif %}
    {%- if message['role'] == 'assistant' %}
        {{- 'Assistant:' }}
        {%- generation %}{{- ' ' + message['content'] | trim + eos_token }}{% endgeneration %}
    {%- elif message['role'] == 'user' %}
        {{- 'User: ' + message['content'] | trim }}
    {%- else %}
        {{- message['content'] | trim }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\nAssistant:' }}{% endif %}"""
"""Template for tokenizers without role tokens. The space before an answer belongs to the answer, because most
tokenizers join it with the first word: the tokens of the prompt must not depend on the answer."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
"""The end of a generation prompt that opens the model's thoughts, as those of R1 distills do."""
PROBE = "quadrigaprobe"
"""A message whose place in a rendered chat is looked up; no template changes plain letters."""


@dataclass(slots=True)
class Rendered:
    """A chat as text.

    spans: [start, end) in characters of the answers that are learned, end tokens included. rewritten: number of answers
    that are not, because the template wrote them in another form than when they were the last message.
    """

    text: str
    spans: list[tuple[int, int]]
    rewritten: int = 0


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
    """Set the tokenizer's template: a name in `NAMED_TEMPLATES` or a Jinja file, or a built-in one where it has none.

    Raises UserError when the file cannot be read.
    """
    if template is not None:
        try:
            path = NAMED_TEMPLATES.get(template) or Path(template).expanduser()
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The chat template {template} cannot be read ({error}). Give a Jinja file as `chat_template`, or the "
                f"name of one that comes with Quadriga{nearest(template, NAMED_TEMPLATES)}"
            ) from None
    elif not tokenizer.chat_template:
        known = tokenizer.get_vocab()
        tokenizer.chat_template = TEMPLATE if all(token in known for token in ROLE_TOKENS) else TEXT_TEMPLATE


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end an answer, ascending.

    They are the tokenizer's end token, those of the generation_config.json in its folder, and the special token with
    which its chat template ends an assistant message.
    """
    return ChatEncoder(tokenizer).ends


class ChatEncoder:
    """ChatEncoder: renders and tokenises chats with one tokenizer.

    A chat that cannot be used raises ValueError with the reason; a template that cannot be used for training raises
    UserError.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        set_chat_template(tokenizer)
        self.tokenizer = tokenizer
        self.template: str = tokenizer.get_chat_template()
        self.marked = GENERATION.search(self.template) is not None
        self.added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special = _any_of(special | set(tokenizer.all_special_tokens))
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int = tokenizer.eos_token_id
        # A model whose tokenizer starts plain text with BOS was trained with it, whatever the template says.
        self.starts_with_bos = self.bos is not None and tokenizer("a").input_ids[0] == self.bos
        self._shown: dict[tuple[str, bool], bool] = {}

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer, as `end_tokens` returns them."""
        return tuple(sorted({self.eos, *_configured_ends(Path(self.tokenizer.name_or_path)), *self._written_end()}))

    def render(self, messages: list[Message], may_be_empty: bool = False) -> Rendered:
        """Render a whole chat, which must end with an answer; may_be_empty: that answer may be empty."""
        self._check(messages, last="assistant", may_be_empty=may_be_empty)
        prompt, _ = self._render(messages[:-1], prompt=True)
        text, spans = self._render(messages, marked=self.marked)
        if not self.marked:
            return self._by_prefix(messages, prompt, text)
        if not spans or not text.startswith(prompt) or spans[-1][0] != len(prompt):
            raise UserError(
                "The chat template's generation prompt differs from its text before an assistant message "
                "in training, so the model would be prompted in a form that it never saw. Correct the template, "
                "or give another one with `chat_template`."
            )
        return Rendered(text, spans)

    def render_prompt(self, messages: list[Message]) -> str:
        """Render a chat up to the position where the assistant's answer begins."""
        self._check(messages)
        if messages[-1]["role"] == "assistant":
            raise ValueError("there is no question: the last message is the assistant's")
        return self._render(messages, prompt=True)[0]

    def encode(self, chats: Sequence[Rendered]) -> list[tuple[list[int], list[int]]]:
        """Return token ids and loss mask of each chat up to the end token of its last answer, tokenised in one batch.

        The mask is 1 on the answers of `Rendered.spans` and their end tokens, and is made from character positions,
        never from token values.
        """
        if not chats:
            return []
        out = self.tokenizer([chat.text for chat in chats], add_special_tokens=False, return_offsets_mapping=True)
        results = []
        for chat, ids, offsets in zip(chats, out["input_ids"], out["offset_mapping"], strict=True):
            mask = self._mask(ids, offsets, chat.spans)
            # What a template writes after the last end token is never generated, so no model reads it.
            results.append(self._with_bos(ids[: len(mask)], mask))
        return results

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each rendered prompt, tokenised in one batch."""
        if not texts:
            return []
        return [
            self._with_bos(ids, [])[0] for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ]

    def _check(self, messages: list[Message], last: str | None = None, may_be_empty: bool = False) -> None:
        check_messages(messages, last=last)
        if messages[0]["role"] == "assistant":
            raise ValueError("the chat begins with an assistant message")
        for n, message in enumerate(messages):
            allowed = may_be_empty and n == len(messages) - 1
            if message["role"] == "assistant" and not message["content"].strip() and not allowed:
                raise ValueError(f"message {n}, an answer, is empty")
            if found := self.special.search(message["content"]) or self._end_in_text.search(message["content"]):
                raise ValueError(f"message {n} holds the special token {found.group()!r} as text")
        for n, message in enumerate(messages):
            if message["role"] not in ("user", "assistant") and not self._shows(messages, n):
                raise ValueError(f"the chat template leaves out message {n}, the {message['role']}'s")

    def _shows(self, messages: list[Message], n: int) -> bool:
        """Return whether the template writes messages of this role, first or later, into a prompt."""
        key = (messages[n]["role"], n == 0)
        if key not in self._shown:
            probe = [*messages[:n], messages[n] | {"content": PROBE}, *messages[n + 1 :]]
            question = probe[:-1] if probe[-1]["role"] == "assistant" else probe
            self._shown[key] = PROBE in self._render(question, prompt=True)[0]
        return self._shown[key]

    def _render(
        self, messages: list[Message], prompt: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = render_jinja_template(
                [messages],
                chat_template=self.template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompt,
                strftime_now=clock.strftime_now,
                **self.tokenizer.special_tokens_map,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template does not accept this chat: {error}") from None
        return texts[0], [(start, end) for start, end in spans[0]] if marked else []

    def _by_prefix(self, messages: list[Message], prompt: str, text: str) -> Rendered:
        """Find the answers of a template without generation marks: the text that each adds to the prompt before it.

        An earlier answer is learned only if it stands in the whole chat as it stood when it was the last message: a
        template may rewrite it, for example without its thoughts.
        """
        if not text.startswith(prompt) or OPENED_THOUGHT.search(prompt):
            text = prompt + self._after_prompt(messages, prompt)
        spans, rewritten = [], 0
        for n, message in enumerate(messages[:-1]):
            if message["role"] == "assistant":
                before, _ = self._render(messages[:n], prompt=True)
                answered, _ = self._render(messages[: n + 1])
                same = _shared(answered, text)
                if answered.startswith(before) and self._end_in_text.search(text[len(before) : same]):
                    spans.append((len(before), same))
                else:
                    rewritten += 1
        return Rendered(text, [*spans, (len(prompt), len(text))], rewritten)

    def _after_prompt(self, messages: list[Message], prompt: str) -> str:
        """Return the last answer as it follows a prompt that differs from the template's text before an answer.

        The answer is learned as it is generated: after the prompt. Thoughts that the prompt opens are closed at once in
        an answer that has none.
        """
        before, found, after = self._render([*messages[:-1], {"role": "assistant", "content": PROBE}])[0].rpartition(
            PROBE
        )
        if not found:
            raise UserError(
                "The chat template does not write the assistant's messages, so nothing can be learned from them. Give "
                "another one with `chat_template`."
            )
        answer = messages[-1]["content"].strip()
        if OPENED_THOUGHT.search(prompt):
            answer = answer.removeprefix("<think>").lstrip()
            return (answer if "</think>" in answer else f"</think>\n\n{answer}") + after
        written = before.rstrip()
        joined = before[len(written) :] if written and prompt.endswith(written[-4:]) else ""
        return joined + answer + after

    def _mask(self, ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
        """Return the loss mask up to the end token of the last span."""
        mask = [0] * len(ids)
        position = 0
        for start, end in spans:
            while position < len(ids) and offsets[position][0] < start:
                if offsets[position][1] > start:
                    raise UserError(
                        "The chat template's generation prompt ends inside a token: the prompt's tokens depend on the "
                        "answer. End the generation prompt with a special token or before the space, or give "
                        "another template with `chat_template`."
                    )
                position += 1
            last = min(
                (at for at in (_index(ids, id_, position) for id_ in self._end_texts.values()) if at >= 0), default=-1
            )
            # Between the marked content and its end token a template may write white space, never another message.
            if last < 0 or offsets[last][0] > end + 1:
                raise UserError(
                    "The chat template does not end an assistant message with an end token (here "
                    f"{' or '.join(map(repr, self._end_texts))}), so the model would never learn to stop. Name the "
                    "token that ends a message as `eos_token` in tokenizer_config.json or `eos_token_id` in "
                    "generation_config.json, or give another template with `chat_template`."
                )
            mask[position : last + 1] = [1] * (last + 1 - position)
            position = last + 1
        return mask[:position]

    @cached_property
    def _end_in_text(self) -> re.Pattern[str]:
        return _any_of(self._end_texts)

    @cached_property
    def _end_texts(self) -> dict[str, int]:
        """Text -> id of the end tokens that no other text produces: only those mark the end of an answer in a text."""
        added = {id_: token.content for id_, token in self.tokenizer.added_tokens_decoder.items()}
        added[self.eos] = self.tokenizer.eos_token
        return {added[id_]: id_ for id_ in self.ends if id_ in added}

    def _written_end(self) -> list[int]:
        """Return the added token that follows an answer in the template's text; empty when there is none."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
        try:
            after = self._render(chat)[0].rpartition(PROBE)[2]
        except ValueError:
            return []
        found = _any_of({*self.added, self.tokenizer.eos_token}).match(after.lstrip())
        return [self.tokenizer.convert_tokens_to_ids(found.group())] if found else []

    @cached_property
    def _doubles_bos(self) -> bool:
        """Whether a chat that has text in its first message starts with two BOS tokens."""
        try:
            text = self._render([{"role": "user", "content": "a"}], prompt=True)[0]
        except ValueError:
            return False
        return list(self.tokenizer(text, add_special_tokens=False).input_ids[:2]) == [self.bos, self.bos]

    def _with_bos(self, ids: list[int], mask: list[int]) -> tuple[list[int], list[int]]:
        """Add the BOS that the tokenizer writes before plain text where the template writes none.

        Raises UserError for a template that writes two at the start. Further ones, of models whose BOS is also the
        marker of a turn or the end token, belong to the chat.
        """
        if self.bos is None:
            return ids, mask
        if self._doubles_bos:
            raise UserError(
                f"The chat template writes {self.tokenizer.bos_token!r} twice at the start. Remove one of them from it."
            )
        if self.starts_with_bos and ids[:1] != [self.bos]:
            return [self.bos, *ids], [0, *mask]
        return ids, mask


def add_end_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the end tokens to a folder's generation_config.json, so that every program that serves it stops at them.

    A base model with a chat template often names only the end of a text there, and not the end of a turn.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    known = _configured_ends(folder)
    more = set(end_tokens(tokenizer)) - {*known, tokenizer.eos_token_id}
    if more:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.pop("_from_model_config", None)  # else transformers may replace the list by what config.json names
        ids = sorted({*known, tokenizer.eos_token_id, *more})
        file.write_text(json.dumps(values | {"eos_token_id": ids}, indent=2) + "\n", encoding="utf-8")


def _configured_ends(folder: Path) -> list[int]:
    """Return `eos_token_id` of the generation_config.json in a folder; empty when there is none."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a generation config ({error}). Is the folder complete?") from None
    return [id_ for id_ in (found if isinstance(found, list) else [found]) if isinstance(id_, int)]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of these texts, the longest that fits."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _shared(one: str, other: str) -> int:
    """Return the number of characters with which both texts begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _index(ids: list[int], id_: int, start: int) -> int:
    """Return the first position of `id_` from `start` on, -1 if there is none."""
    try:
        return ids.index(id_, start)
    except ValueError:
        return -1
