"""Chat encoding: chats to tokens and a loss mask by a chat template, with checks that the mask is right."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from quadriga.data.errors import UserError
from quadriga.data.records import Message, check_messages

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


@dataclass(slots=True)
class Rendered:
    """A chat as text. `spans`: [start, end) in characters of the assistant's messages, end tokens included."""

    text: str
    spans: list[tuple[int, int]]


def set_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> None:
    """Set the tokenizer's template: the Jinja file `path`, or a built-in one where the tokenizer has none.

    Raises UserError when the file cannot be read.
    """
    if path is not None:
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The chat template {path} cannot be read ({error}). Check `chat_template`.") from None
    elif not tokenizer.chat_template:
        known = tokenizer.get_vocab()
        tokenizer.chat_template = TEMPLATE if all(token in known for token in ROLE_TOKENS) else TEXT_TEMPLATE


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
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self.special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int = tokenizer.eos_token_id
        # A model whose tokenizer starts plain text with BOS was trained with it, whatever the template says.
        self.starts_with_bos = self.bos is not None and tokenizer("a").input_ids[0] == self.bos

    def render(self, messages: list[Message], may_be_empty: bool = False) -> Rendered:
        """Render a whole chat, which must end with an answer; may_be_empty: that answer may be empty."""
        self._check(messages, last="assistant", may_be_empty=may_be_empty)
        text, spans = self._render(messages, marked=self.marked)
        if self.marked:
            prompt, _ = self._render(messages[:-1], prompt=True)
            if not spans or not text.startswith(prompt) or spans[-1][0] != len(prompt):
                raise UserError(
                    "The chat template's generation prompt differs from its text before an assistant message "
                    "in training, so the model would be prompted in a form that it never saw. Correct the template, "
                    "or give another one with `chat_template`."
                )
            return Rendered(text, spans)
        return Rendered(text, self._spans_by_prefix(messages, text))

    def render_prompt(self, messages: list[Message]) -> str:
        """Render a chat up to the position where the assistant's answer begins."""
        self._check(messages)
        if messages[-1]["role"] == "assistant":
            raise ValueError("there is no question: the last message is the assistant's")
        return self._render(messages, prompt=True)[0]

    def encode(self, chats: Sequence[Rendered]) -> list[tuple[list[int], list[int]]]:
        """Return token ids and loss mask of each chat, tokenised in one batch.

        The mask is 1 on the assistant's tokens and its end token, and is made from character positions, never from
        token values.
        """
        if not chats:
            return []
        out = self.tokenizer([chat.text for chat in chats], add_special_tokens=False, return_offsets_mapping=True)
        return [
            self._with_bos(ids, self._mask(ids, offsets, chat.spans))
            for chat, ids, offsets in zip(chats, out["input_ids"], out["offset_mapping"], strict=True)
        ]

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
            if found := self.special.search(message["content"]):
                raise ValueError(f"message {n} holds the special token {found.group()!r} as text")

    def _render(
        self, messages: list[Message], prompt: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = render_jinja_template(
                [messages],
                chat_template=self.template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompt,
                **self.tokenizer.special_tokens_map,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template does not accept this chat: {error}") from None
        return texts[0], [(start, end) for start, end in spans[0]] if marked else []

    def _spans_by_prefix(self, messages: list[Message], text: str) -> list[tuple[int, int]]:
        """Find the answers of a template without generation marks: the text that each adds to the prompt before it."""
        spans = []
        for n, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt, _ = self._render(messages[:n], prompt=True)
                answered, _ = self._render(messages[: n + 1])
                if not (answered.startswith(prompt) and text.startswith(answered)):
                    raise UserError(
                        "The chat template has no {% generation %} marks and rewrites earlier messages as the chat "
                        f"continues (seen at message {n}), so the assistant's tokens cannot be identified. "
                        "Put {% generation %} and {% endgeneration %} around the assistant's content and end token, "
                        "or give another template with `chat_template`."
                    )
                spans.append((len(prompt), len(answered)))
        return spans

    def _mask(self, ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
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
            try:
                last = ids.index(self.eos, position)
            except ValueError:
                last = -1
            # Between the marked content and its end token a template may write white space, never another message.
            if last < 0 or offsets[last][0] > end + 1:
                raise UserError(
                    f"The chat template does not end an assistant message with {self.tokenizer.eos_token!r}, the "
                    "tokenizer's end token, so the model would never learn to stop. Set `eos_token` in "
                    "tokenizer_config.json to the token that ends a message, or give another template with "
                    "`chat_template`."
                )
            mask[position : last + 1] = [1] * (last + 1 - position)
            position = last + 1
        return mask

    def _with_bos(self, ids: list[int], mask: list[int]) -> tuple[list[int], list[int]]:
        """Ensure exactly one BOS, at the start, for models that have one."""
        if self.bos is None:
            return ids, mask
        if ids[:2] == [self.bos, self.bos]:
            raise UserError(
                f"The chat template writes {self.tokenizer.bos_token!r} twice at the start. Remove one of them from it."
            )
        if self.starts_with_bos and ids[:1] != [self.bos]:
            return [self.bos, *ids], [0, *mask]
        return ids, mask
