"""The text of an answer: whole but for its end."""

import pytest

from quadriga.data.tokens.tokenizer import train_tokenizer
from quadriga.orchestrator.rollout.answer_text import answer_text

TOKENIZER = train_tokenizer(["the cat sat on the mat"] * 3, 300)
PAD, BOS, EOS, USER, ASSISTANT, SYSTEM = range(6)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ([SYSTEM], [USER, EOS], "<system> x <user>"),
        ([], [EOS, PAD, PAD], " x "),
        ([EOS, PAD], [], "<eos><pad> x "),
        ([], [], " x "),
    ],
)
def test_only_the_end_is_cut(before: list[int], after: list[int], text: str) -> None:
    """Reported: tags that are special tokens, and outer space, never reached a reward function."""
    ids = [*before, *TOKENIZER(" x ", add_special_tokens=False).input_ids, *after]
    assert answer_text(TOKENIZER, (EOS,), ids) == text


def test_an_answer_of_its_end_alone_is_empty() -> None:
    assert answer_text(TOKENIZER, (EOS,), [EOS]) == ""


def test_any_end_token_is_cut() -> None:
    assert answer_text(TOKENIZER, (EOS, USER), [SYSTEM, USER]) == "<system>"
