"""Rows: parsing into documents, demonstrations, prompts or rankings, which the columns tell apart.

The columns are those of TRL (text; messages; prompt; prompt, completion; chosen, rejected with or without prompt),
ranked answers with the best first (messages, responses) and the fields of `Ranking`; `ranking_formats` adds those of
labelling tools. All functions raise ValueError, with the reason, for a row that does not fit, and keep unknown columns
in `meta`.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from quadriga.data.records import Message, Ranking, Response, plain_messages

HUMAN = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


@dataclass(slots=True)
class Chat:
    """The messages of a row, or its plain text, and the row's other columns."""

    messages: list[Message]
    meta: dict[str, Any]
    text: str | None = None

    @property
    def key(self) -> str:
        """Return the text, or the chat up to its first question: rows that share it stay in one part of a split.

        Later turns do not count because dialogues that begin alike quote each other's answers.
        """
        return self.text if self.text is not None else _first_question(self.messages)


def document(values: dict[str, Any]) -> Chat:
    """Parse a row of plain text."""
    text = values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no text in column `text` (columns: {', '.join(values)})")
    return Chat([], _rest(values, "text"), text)


def demonstration(values: dict[str, Any]) -> Chat:
    """Parse a chat that ends with an answer, or plain text."""
    if "messages" in values:
        messages = _messages(values["messages"])
        _ends_with_answer(messages)
        return Chat(messages, _rest(values, "messages"))
    if "completion" in values and "prompt" in values:
        messages = [*_question(values["prompt"]), _answer(values["completion"], "completion")]
        return Chat(messages, _rest(values, "prompt", "completion"))
    if "text" in values:
        return document(values)
    raise ValueError(
        f"the columns {', '.join(values)} are not a demonstration: expected messages, prompt and completion, or text"
    )


def prompt(values: dict[str, Any]) -> Chat:
    """Parse a chat that ends with a question; the answer of a demonstration is kept in `meta["completion"]`."""
    if "prompt" in values:
        messages, rest = _question(values["prompt"]), _rest(values, "prompt")
    elif "messages" in values:
        messages, rest = _messages(values["messages"]), _rest(values, "messages")
        if messages[-1]["role"] == "assistant":
            rest.setdefault("completion", messages[-1]["content"])
            messages = messages[:-1]
    elif "chosen" in values and "rejected" in values:
        messages, rest = ranking(values).messages, {}
    else:
        raise ValueError(f"the columns {', '.join(values)} do not hold a prompt: expected prompt or messages")
    if not messages or messages[-1]["role"] == "assistant":
        raise ValueError("there is no question: the last message is the assistant's")
    return Chat(messages, rest)


def ranking(values: dict[str, Any]) -> Ranking:
    """Parse ranked answers to one prompt: a preference pair, answers best first, or the fields of `Ranking`."""
    if "chosen" in values and "rejected" in values:
        return _from_pair(values)
    if "responses" in values and "ranking" in values:
        return Ranking.from_row({"id": _id(values), **values})
    if "responses" in values:
        return _from_ordered(values)
    raise ValueError(
        f"the columns {', '.join(values)} are not ranked answers: expected chosen and rejected, or messages, responses"
    )


def _from_pair(values: dict[str, Any]) -> Ranking:
    chosen, rejected = values["chosen"], values["rejected"]
    if values.get("prompt") is not None and not (_is_whole_chat(chosen) and _is_whole_chat(rejected)):
        messages = _question(values["prompt"])
        answers = [_answer(chosen, "chosen"), _answer(rejected, "rejected")]
    else:
        messages, *answers = _split_pair(_messages(chosen), _messages(rejected))
    if answers[0] == answers[1]:
        raise ValueError("chosen and rejected are the same")
    return Ranking(
        id=_id(values, messages),
        messages=messages,
        responses=[Response("chosen", answers[0]["content"]), Response("rejected", answers[1]["content"])],
        ranking=[["chosen"], ["rejected"]],
        meta=_rest(values, "id", "prompt", "chosen", "rejected"),
    )


def _split_pair(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], Message, Message]:
    """Return the shared prompt and the last answer of each."""
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(f"{name} does not end with an answer")
        if not messages[-1]["content"].strip():
            raise ValueError(f"the answer of {name} is empty")
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected differ before their last answers: not two answers to one prompt")
    return chosen[:-1], chosen[-1], rejected[-1]


def _from_ordered(values: dict[str, Any]) -> Ranking:
    name = next((name for name in ("messages", "dialogue", "prompt") if name in values), None)
    if name is None:
        raise ValueError("responses without messages, dialogue or prompt")
    responses = values["responses"]
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise ValueError("`responses` is not a list of texts, best first (or `ranking` is missing)")
    messages = _question(values[name])
    return Ranking(
        id=_id(values, messages),
        messages=messages,
        responses=[Response(str(n), text) for n, text in enumerate(responses)],
        ranking=[[str(n)] for n in range(len(responses))],
        meta=_rest(values, "id", "responses", name),
    )


def parse_dialogue(text: str) -> list[Message]:
    """Parse "\\n\\nHuman: ...\\n\\nAssistant: ..." (the form of Bai et al. 2022, arXiv 2204.05862).

    Neighbouring turns of one speaker become one message, as chat templates require.
    """
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise ValueError("not a dialogue of the form '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    messages: list[Message] = []
    for speaker, content in zip(turns[::2], turns[1::2], strict=True):
        role = _ROLE[speaker]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content.strip()}".strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(HUMAN)


def _is_whole_chat(value: Any) -> bool:
    """Return whether a chosen or rejected column repeats the prompt, as in some data sets."""
    return _is_dialogue(value) or (isinstance(value, list) and len(value) > 1)


def _messages(value: Any) -> list[Message]:
    return plain_messages(parse_dialogue(value) if isinstance(value, str) else value)


def _question(value: Any) -> list[Message]:
    """Parse a prompt column: text, a dialogue as text, or messages."""
    if isinstance(value, str) and not _is_dialogue(value):
        if not value.strip():
            raise ValueError("the prompt is empty")
        return [{"role": "user", "content": value}]
    messages = _messages(value)
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()  # a dialogue that ends with "Assistant:" asks for the answer
    return messages


def _answer(value: Any, column: str) -> Message:
    """Parse an answer column: text, or one assistant message."""
    if isinstance(value, list):
        messages = _messages(value)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise ValueError(f"`{column}` is not one assistant message")
        value = messages[0]["content"]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{column}` is empty or not text")
    return {"role": "assistant", "content": value}


def _ends_with_answer(messages: list[Message]) -> None:
    if messages[-1]["role"] != "assistant":
        raise ValueError("the chat does not end with an answer")


def _rest(values: dict[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in used}


def _first_question(messages: list[Message]) -> str:
    first = next((n for n, message in enumerate(messages) if message["role"] == "user"), len(messages) - 1)
    return json.dumps(messages[: first + 1], ensure_ascii=False, sort_keys=True)


def ranking_key(item: Ranking) -> str:
    """Return the key of a ranking for splits, as `Chat.key`."""
    return _first_question(item.messages)


def content_id(value: Any) -> str:
    """Return a short id that depends on the content alone: the same in every run."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def _id(values: dict[str, Any], content: Any = None) -> str:
    given = values.get("id")
    return str(given) if given is not None else content_id(content if content is not None else values)
