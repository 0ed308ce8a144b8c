"""A conversation stays inside the context and drops its oldest turns first."""

from pathlib import Path

import pytest
from helpers.chat_tokens import encode_prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.data.tokens.tokenizer import train_tokenizer
from quadriga.orchestrator.chat import CONTEXT, Conversation, context_length

TOKENIZER = train_tokenizer(["sun moon star tree river stone"] * 4, 300)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_turns_are_rendered_as_one_chat() -> None:
    talk = Conversation(TOKENIZER, 200, 32)
    ids, dropped = talk.ask("sun?")
    assert (ids, dropped, talk.room(ids)) == (encode_prompt(TOKENIZER, [user("sun?")]), 0, 32)
    talk.add_answer("moon.")
    ids, _ = talk.ask("star?")
    assert ids == encode_prompt(TOKENIZER, [user("sun?"), {"role": "assistant", "content": "moon."}, user("star?")])
    talk.reset()
    assert talk.ask("sun?")[0] == encode_prompt(TOKENIZER, [user("sun?")])


def test_the_oldest_turns_go_first() -> None:
    answer = {"role": "assistant", "content": "star"}
    chat = [user("sun"), answer, user("moon"), answer, user("tree")]
    talk = Conversation(TOKENIZER, len(encode_prompt(TOKENIZER, chat)) + 7, 8)  # one token short
    for question in ("sun", "moon"):
        assert talk.ask(question)[1] == 0
        talk.add_answer("star")
    assert talk.ask("tree") == (encode_prompt(TOKENIZER, chat[2:]), 1)
    assert talk.messages == chat[2:]


def test_a_question_that_is_refused_is_forgotten() -> None:
    talk = Conversation(TOKENIZER, 40, 30)
    talk.ask("sun")
    talk.add_answer("moon")
    before = list(talk.messages)
    with pytest.raises(ValueError, match="the context of this model is 40"):
        talk.ask("x" * 200)
    with pytest.raises(ValueError, match="special token"):
        talk.ask("<eos>")
    assert talk.messages == before
    ids, _ = talk.ask("x" * 30)  # leaves less room than an answer may have
    assert talk.room(ids) == 40 - len(ids) < 20


def test_a_turn_without_an_answer_is_forgotten() -> None:
    talk = Conversation(TOKENIZER, 100, 10)
    talk.ask("sun")
    talk.add_answer("")
    assert talk.messages == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20)), max_size=8))
def test_prompt_and_answer_always_fit(turns: list[tuple[int, int]]) -> None:
    talk = Conversation(TOKENIZER, 64, 24)
    for asked, answered in turns:
        try:
            ids, _ = talk.ask("x" * asked)
        except ValueError:
            assert asked + 3 >= 64  # BOS, <user>, <assistant>
            continue
        assert talk.messages[-1] == user("x" * asked)
        assert 1 <= talk.room(ids) <= 24
        assert len(ids) + talk.room(ids) <= 64
        talk.add_answer("y" * answered)


def test_the_context_is_that_of_the_model_up_to_a_limit(tmp_path: Path) -> None:
    for text, expected in (
        ('{"model_type": "llama", "max_position_embeddings": 128}', 128),
        ('{"model_type": "gpt2", "n_positions": 1024}', 1024),
        ('{"model_type": "llama", "max_position_embeddings": 131072}', CONTEXT),
        ('{"model_type": "rwkv"}', CONTEXT),
    ):
        (tmp_path / "config.json").write_text(text)
        assert context_length(str(tmp_path)) == expected
