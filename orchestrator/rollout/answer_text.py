"""The text of an answer, as reward functions, rankings and samples get it."""

from collections.abc import Collection
from typing import Any


def answer_text(tokenizer: Any, stop_ids: Collection[int], token_ids: list[int]) -> str:
    """Return the text of an answer without the end token (or padding) at its end, and otherwise whole.

    Special tokens inside it, such as tags around a thought, are what the policy said, and outer space is too.
    """
    end = len(token_ids)
    while end and (token_ids[end - 1] in stop_ids or token_ids[end - 1] == tokenizer.pad_token_id):
        end -= 1
    return str(tokenizer.decode(token_ids[:end], skip_special_tokens=False))
