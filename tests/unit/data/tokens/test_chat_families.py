"""The templates of common families give the masks and prompts of an independent rendering."""

import json
from pathlib import Path

import pytest
from helpers.chat_families import FAMILIES, Family, Pieces, qwen3_trained
from helpers.chat_tokens import encode_chat, encode_prompt
from transformers import PreTrainedTokenizerBase

from quadriga.data.loading.datasets import load_demonstrations, load_rankings
from quadriga.data.records import Message
from quadriga.data.settings import DataSettings
from quadriga.data.tokens.chat import ChatEncoder, add_end_tokens, set_chat_template

SYSTEM = [{"role": "system", "content": "Be kind."}]
TURN = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hi, you."}]
AGAIN = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me, ünï."}]
CHATS = {
    "one turn": TURN,
    "two turns": TURN + AGAIN,
    "three turns": TURN + AGAIN + TURN,
    "system": SYSTEM + TURN,
    "system, two turns": SYSTEM + TURN + AGAIN,
}
each_family = pytest.mark.parametrize("name", FAMILIES)
each_chat = pytest.mark.parametrize("chat", CHATS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizer of each family, loaded from a folder."""
    folder = tmp_path_factory.mktemp("families")
    return {name: family.tokenizer(folder / name) for name, family in FAMILIES.items()}


def tokens(tokenizer: PreTrainedTokenizerBase, family: Family, pieces: Pieces) -> tuple[list[int], list[int]]:
    """Return ids and mask of pieces. The tokenizers have no merges, so pieces can be tokenised one by one."""
    ids: list[int] = []
    mask: list[int] = []
    for text, learned in pieces:
        more = tokenizer(text, add_special_tokens=False).input_ids
        ids, mask = ids + more, mask + [int(learned)] * len(more)
    return ids, mask


@each_family
@each_chat
def test_masks_are_those_of_the_independent_rendering(loaded, name: str, chat: str) -> None:
    tokenizer, family = loaded[name], FAMILIES[name]
    if not family.system and CHATS[chat][0]["role"] == "system":
        with pytest.raises(ValueError, match="does not accept this chat"):
            encode_chat(tokenizer, CHATS[chat])
        return
    assert encode_chat(tokenizer, CHATS[chat]) == tokens(tokenizer, family, family.pieces(CHATS[chat]))


@each_family
@each_chat
def test_prompts_are_those_of_the_independent_rendering(loaded, name: str, chat: str) -> None:
    tokenizer, family, question = loaded[name], FAMILIES[name], CHATS[chat][:-1]
    if not family.system and question[0]["role"] == "system":
        with pytest.raises(ValueError, match="does not accept this chat"):
            encode_prompt(tokenizer, question)
        return
    assert encode_prompt(tokenizer, question) == tokens(tokenizer, family, family.pieces(question))[0]


@each_family
@each_chat
def test_a_training_row_begins_with_its_prompt(loaded, name: str, chat: str) -> None:
    tokenizer, messages = loaded[name], CHATS[chat]
    if not FAMILIES[name].system and messages[0]["role"] == "system":
        return
    prompt, (ids, mask) = encode_prompt(tokenizer, messages[:-1]), encode_chat(tokenizer, messages)
    assert ids[: len(prompt)] == prompt
    assert mask[len(prompt) :] == [1] * (len(ids) - len(prompt))
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == FAMILIES[name].end


@each_family
def test_answers_are_stopped_at_every_end_token(loaded, name: str) -> None:
    tokenizer, family = loaded[name], FAMILIES[name]
    expected = {family.eos, family.end, *family.ends}
    assert set(tokenizer.convert_ids_to_tokens(list(ChatEncoder(tokenizer).ends))) == expected


@each_family
def test_rewritten_answers_are_counted(loaded, name: str) -> None:
    encoder = ChatEncoder(loaded[name])
    assert encoder.render(TURN).rewritten == 0
    assert encoder.render(TURN + AGAIN + TURN).rewritten == (2 if FAMILIES[name].rewrites else 0)


@each_chat
def test_the_shipped_variant_of_qwen3_learns_every_answer(tmp_path: Path, chat: str) -> None:
    family = FAMILIES["qwen3"]
    tokenizer, messages = family.tokenizer(tmp_path), CHATS[chat]
    first = encode_prompt(tokenizer, messages[: -1 if len(messages) < 4 else 1])
    set_chat_template(tokenizer, "qwen3")
    assert encode_prompt(tokenizer, messages[: -1 if len(messages) < 4 else 1]) == first
    assert encode_chat(tokenizer, messages) == tokens(tokenizer, family, qwen3_trained(messages))


def thinking(text: str) -> list[Message]:
    return [TURN[0], {"role": "assistant", "content": text}]


def test_thoughts_that_the_prompt_opens_continue_in_the_answer(loaded) -> None:
    tokenizer = loaded["deepseek-r1"]
    prompt = encode_prompt(tokenizer, TURN[:1])
    for text in ("Greet.\n</think>\n\nHi.", "<think>\nGreet.\n</think>\n\nHi."):
        ids, _ = encode_chat(tokenizer, thinking(text))
        assert ids[: len(prompt)] == prompt
        assert tokenizer.decode(ids[len(prompt) :]) == "Greet.\n</think>\n\nHi.<|end▁of▁sentence|>"


def test_qwen3_learns_the_thoughts_of_an_answer(loaded, tmp_path: Path) -> None:
    own, variant = loaded["qwen3"], FAMILIES["qwen3"].tokenizer(tmp_path)
    set_chat_template(variant, "qwen3")
    chat = thinking("<think>\nGreet.\n</think>\n\nHi.")
    assert encode_chat(own, chat) == encode_chat(variant, chat)
    assert own.decode(encode_chat(own, chat)[0]).endswith("<think>\nGreet.\n</think>\n\nHi.<|im_end|>")


def test_answers_that_are_not_learned_are_counted_in_a_note(loaded, tmp_path: Path) -> None:
    chats = [TURN, TURN + AGAIN, TURN + AGAIN + TURN]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    settings = DataSettings(train=str(tmp_path / "chats.jsonl"))  # type: ignore[arg-type]
    (note,) = load_demonstrations(settings, loaded["qwen3"], 0).notes
    assert "only the last answer is learned in 2 chats; 3 earlier answers are not" in note
    assert "`qwen3`" in note
    assert not load_demonstrations(settings, loaded["qwen2.5"], 0).notes


@each_family
def test_rankings_end_where_the_policy_stops(loaded, tmp_path: Path, name: str) -> None:
    """What a template writes after the end token, the reward model would never see in an answer."""
    row = {"prompt": "Hello there", "chosen": "Hi, you.", "rejected": "No."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    settings = DataSettings(train=str(tmp_path / "pairs.jsonl"))  # type: ignore[arg-type]
    (ranked,) = load_rankings(settings, loaded[name], 0).train
    assert loaded[name].convert_ids_to_tokens([ids[-1] for ids in ranked.sequences]) == [FAMILIES[name].end] * 2
    assert ranked.sequences[0][: ranked.prompt_length] == encode_prompt(loaded[name], TURN[:1])


def test_exports_name_the_end_of_a_turn(loaded, tmp_path: Path) -> None:
    """A base model's generation_config.json knows the end of a text only."""
    for name, expected in (("qwen2.5-base", {"<|endoftext|>", "<|im_end|>"}), ("chatml", {"<|im_end|>"})):
        tokenizer, file = loaded[name], tmp_path / "generation_config.json"
        config = {"eos_token_id": tokenizer.eos_token_id, "top_k": 5, "_from_model_config": True}
        file.write_text(json.dumps(config))
        before = file.read_bytes()
        add_end_tokens(tmp_path, tokenizer)
        written = json.loads(file.read_text())
        ends = written["eos_token_id"] if isinstance(written["eos_token_id"], list) else [written["eos_token_id"]]
        assert set(tokenizer.convert_ids_to_tokens(ends)) == expected
        assert written["top_k"] == 5
        assert ("_from_model_config" in written) is (len(ends) == 1)
    assert file.read_bytes() == before, "a config that is right is not touched"
