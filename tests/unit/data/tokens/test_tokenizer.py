"""Trained tokenizers have the agreed ids and files; loaded ones get a safe pad token where there is one."""

import pytest
from helpers.chat_tokens import encode_chat
from helpers.corpora import CORPORA, needs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from quadriga.data.errors import UserError
from quadriga.data.tokens.tokenizer import SPECIAL_TOKENS, load_tokenizer, pad_token_id, train_tokenizer

CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
TEXTS = ["the cat sat on the mat", "the dog sat on the cat", "a mat for the dog"] * 5


def plain_tokenizer(special, **roles):
    """Return a byte-level tokenizer of other origin with these special tokens."""
    backend = Tokenizer(
        models.BPE(vocab={c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def test_special_tokens_come_first_and_all_bytes_are_there():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.convert_ids_to_tokens(range(6)) == list(SPECIAL_TOKENS)
    assert tokenizer.get_vocab().keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    assert 262 < len(tokenizer) <= 300
    text = "Zürich \U0001f40e\n\ttab  two blanks 漢字 \x00"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_training_is_deterministic_and_merges_frequent_pairs():
    first, second = train_tokenizer(TEXTS, 290), train_tokenizer(iter(TEXTS), 290)
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize(" the") == ["Ġthe"]


def test_saved_files_load_in_transformers(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    chat = [{"role": "user", "content": "hi"}]
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
        assert loaded("the cat").input_ids == tokenizer("the cat").input_ids
        assert loaded("the cat").input_ids.count(1) == 1
        text = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text == "<bos><user>hi<assistant>"
        assert loaded.decode([3, *loaded("x", add_special_tokens=False).input_ids, 2], skip_special_tokens=True) == "x"


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="does not hold a tokenizer"):
        load_tokenizer(tmp_path)
    plain_tokenizer(["</s>"], pad_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no `eos_token`"):
        load_tokenizer(tmp_path)


def test_the_pad_token_is_never_the_end_token(tmp_path):
    plain_tokenizer(["<|end|>", "<|reserved_0|>"], eos_token="<|end|>", pad_token="<|end|>").save_pretrained(
        tmp_path / "a"
    )
    assert load_tokenizer(tmp_path / "a").pad_token == "<|reserved_0|>"
    plain_tokenizer(["<s>", "</s>", "<unk>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(
        tmp_path / "b"
    )
    assert load_tokenizer(tmp_path / "b").pad_token == "<unk>"
    assert pad_token_id(load_tokenizer(tmp_path / "a")) is not None


def test_no_pad_token_is_needed(tmp_path):
    """GPT-2 and its relatives have none apart from their end token, and packed batches never pad."""
    plain_tokenizer(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "none"
    )
    plain_tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>", pad_token="<|endoftext|>").save_pretrained(
        tmp_path / "end"
    )
    for name in ("none", "end"):
        tokenizer = load_tokenizer(tmp_path / name)
        assert pad_token_id(tokenizer) is None
        assert encode_chat(tokenizer, CHAT)[1][-1] == 1


@needs("stories260K")
def test_a_real_llama_tokenizer():
    tokenizer = load_tokenizer(CORPORA / "stories260K/hf")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 512
