"""The loss mask covers the assistant's messages and end tokens for every kind of template that is accepted."""

import pytest
from helpers.chat_tokens import encode_chat, encode_prompt
from helpers.corpora import CORPORA, needs
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from quadriga.data.errors import UserError
from quadriga.data.tokens.chat import TEXT_TEMPLATE, ChatEncoder, end_tokens, set_chat_template
from quadriga.data.tokens.tokenizer import load_tokenizer, train_tokenizer

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " Hello there "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me, ünï\n"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OURS = train_tokenizer(["Hello there, who are you? Me. Be kind."] * 3, 300)


def foreign(template=None, bos=None, adds_bos=False, eos="<|im_end|>"):
    """Return a byte-level tokenizer of other origin."""
    backend = Tokenizer(
        models.BPE(vocab={c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<pad>", "<s>", "<|eot|>"])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token="<pad>", bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


def masked_text(tokenizer, messages):
    ids, mask = encode_chat(tokenizer, messages)
    return tokenizer.decode([id_ for id_, m in zip(ids, mask, strict=True) if m])


def test_our_template_token_by_token():
    ids, mask = encode_chat(OURS, CHAT)
    plain = {
        text: OURS(text, add_special_tokens=False).input_ids
        for text in ("Be kind.", "Hello there", "Hi.", "Who?", "Me, ünï")
    }
    parts = [([1], 0), ([5, *plain["Be kind."]], 0), ([3, *plain["Hello there"]], 0), ([4], 0), ([*plain["Hi."], 2], 1)]
    parts += [([3, *plain["Who?"]], 0), ([4], 0), ([*plain["Me, ünï"], 2], 1)]
    assert ids == [id_ for part, _ in parts for id_ in part]
    assert mask == [m for part, m in parts for _ in part]


def test_the_prompt_is_the_beginning_of_the_answered_chat():
    for tokenizer in (OURS, foreign(CHATML), foreign(MARKED), foreign()):
        prompt, (ids, mask) = encode_prompt(tokenizer, CHAT[:-1]), encode_chat(tokenizer, CHAT)
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt)] == 1
        assert mask[len(prompt) - 1] == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text().filter(str.strip)), min_size=1, max_size=3))
def test_any_text_comes_back_from_the_mask(turns):
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    try:
        ids, mask = encode_chat(OURS, messages)
    except ValueError as error:
        assert "special token" in str(error)
        return
    assert ids.count(1) == 1
    assert ids[0] == 1
    answered = OURS.decode([id_ for id_, m in zip(ids, mask, strict=True) if m])
    assert answered == "".join(text.strip() + "<eos>" for _, text in turns)


def test_templates_with_and_without_marks_agree():
    """The marks exclude the end token, the mask includes it. The newline after it is never the assistant's."""
    assert encode_chat(foreign(CHATML), CHAT) == encode_chat(foreign(MARKED), CHAT)
    assert masked_text(foreign(CHATML), CHAT) == "Hi.<|im_end|>Me, ünï\n<|im_end|>"


def test_a_tokenizer_without_template_gets_plain_text():
    tokenizer = foreign(bos="<s>")
    ids, _ = encode_chat(tokenizer, CHAT)
    assert tokenizer.decode(ids) == (
        "<s>Be kind.\nUser: Hello there\nAssistant: Hi.<|im_end|>\nUser: Who?\nAssistant: Me, ünï<|im_end|>"
    )
    assert masked_text(tokenizer, CHAT) == " Hi.<|im_end|> Me, ünï<|im_end|>"
    assert tokenizer.decode(encode_prompt(tokenizer, CHAT[:2])) == "<s>Be kind.\nUser: Hello there\nAssistant:"


def test_bos_is_written_once_by_template_or_tokenizer():
    with_bos = "{{ bos_token }}" + CHATML
    for tokenizer in (
        foreign(with_bos, bos="<s>"),
        foreign(with_bos, bos="<s>", adds_bos=True),
        foreign(CHATML, bos="<s>", adds_bos=True),  # the model expects one that the template forgets
    ):
        bos = tokenizer.bos_token_id
        ids, mask = encode_chat(tokenizer, CHAT)
        assert ids.count(bos) == 1
        assert ids[0] == bos
        assert len(mask) == len(ids)
        assert mask[0] == 0
        assert encode_prompt(tokenizer, CHAT[:2])[:2].count(bos) == 1
    assert encode_chat(foreign(CHATML), CHAT)[0][0] == foreign().convert_tokens_to_ids("<|im_start|>")
    with pytest.raises(UserError, match="twice at the start"):
        encode_chat(foreign("{{ bos_token }}" + with_bos, bos="<s>"), CHAT)


def test_no_bos_is_added_that_neither_template_nor_tokenizer_writes():
    """Phi-3, Yi and Granite name one; their prompts have none."""
    tokenizer = foreign(CHATML, bos="<s>")
    assert encode_chat(tokenizer, CHAT) == encode_chat(foreign(CHATML), CHAT)
    assert encode_prompt(tokenizer, CHAT[:2]) == encode_prompt(foreign(CHATML), CHAT[:2])


def test_a_bos_that_is_the_end_token_may_occur_in_every_turn():
    ending = "{{ bos_token }}" + CHATML
    tokenizer = foreign(ending, bos="<|im_end|>")
    ids, mask = encode_chat(tokenizer, CHAT)
    assert ids.count(tokenizer.bos_token_id) == 1 + len(CHAT)
    assert mask[0] == 0
    assert mask[1:] == encode_chat(foreign(CHATML), CHAT)[1]
    assert encode_prompt(tokenizer, CHAT[:-1])[1:] == encode_prompt(foreign(CHATML), CHAT[:-1])


def test_a_bos_that_marks_turns_may_occur_in_every_turn():
    """So does SmolLM2's, and that of every model made with TRL's helper for ChatML."""
    tokenizer = foreign(CHATML, bos="<|im_start|>", adds_bos=True)
    assert encode_chat(tokenizer, CHAT) == encode_chat(foreign(CHATML), CHAT)
    bare = "{% for m in messages %}{{ bos_token + m['content'] }}{% endfor %}"
    empty = [{"role": "user", "content": ""}, {"role": "user", "content": "Who?"}]
    assert encode_prompt(foreign(bare, bos="<s>"), empty)[:2] == [foreign(bos="<s>").bos_token_id] * 2
    with pytest.raises(UserError, match="twice at the start"):
        encode_prompt(foreign("{{ bos_token }}" + bare, bos="<s>"), empty)


def test_an_end_of_turn_need_not_be_a_special_token():
    """Some tokenizers add it as an ordinary token; text that reads the same would end an answer early."""
    tokenizer = foreign(CHATML.replace("<|im_end|>", "<|over|>"), eos="<|eot|>")
    tokenizer.add_tokens(["<|over|>"])
    assert masked_text(tokenizer, CHAT) == "Hi.<|over|>Me, ünï\n<|over|>"
    assert end_tokens(tokenizer) == tuple(sorted(tokenizer.convert_tokens_to_ids(["<|eot|>", "<|over|>"])))
    with pytest.raises(ValueError, match=r"holds the special token '<\|over\|>'"):
        encode_chat(tokenizer, [CHAT[1], {"role": "assistant", "content": "Hi.<|over|>"}])


def test_a_message_that_the_template_leaves_out_is_refused():
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] in ('user', 'assistant') %}")
    with pytest.raises(ValueError, match="leaves out message 0, the system's"):
        encode_chat(foreign(silent), CHAT)
    with pytest.raises(ValueError, match="leaves out message 1, the tool's"):
        encode_prompt(foreign(silent), [CHAT[1], {"role": "tool", "content": "42"}])
    assert encode_chat(foreign(silent), CHAT[1:]) == encode_chat(foreign(CHATML), CHAT[1:])


@pytest.mark.parametrize("role", ["tool", "developer"])
def test_messages_of_tools_and_developers_are_read(role):
    tokenizer = foreign(CHATML)
    text = tokenizer.decode(encode_prompt(tokenizer, [CHAT[1], {"role": role, "content": "42"}]))
    assert f"<|im_start|>{role}\n42<|im_end|>" in text


def test_templates_that_cannot_be_trained_with_are_refused():
    with pytest.raises(UserError, match=r"does not end an assistant message with an end token \(here '<\|im_end\|>'\)"):
        encode_chat(foreign(CHATML.replace("<|im_end|>", "")), CHAT)
    with pytest.raises(UserError, match="does not write the assistant's messages"):
        encode_chat(foreign("{% for m in messages[:-1] %}{{ m['content'] }}{% endfor %}<|im_start|>"), CHAT)
    with pytest.raises(UserError, match="generation prompt differs"):
        encode_chat(foreign(MARKED.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>bot\n{% endif %}")), CHAT)


def test_generation_prompt_inside_a_token_is_refused():
    """With the space in the prompt, " Me" would be one token in training and two when generating."""
    tokenizer = train_tokenizer([" Me Me Me Me"] * 5, 300)
    assert tokenizer.tokenize(" Me") == ["ĠMe"]
    tokenizer.chat_template = (
        TEXT_TEMPLATE.replace("'Assistant:' }}", "'Assistant: ' }}")
        .replace("' ' + message['content']", "message['content']")
        .replace("'\\nAssistant:'", "'\\nAssistant: '")
    )
    with pytest.raises(UserError, match="ends inside a token"):
        encode_chat(tokenizer, [{"role": "user", "content": "Who"}, {"role": "assistant", "content": "Me"}])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one"),
        ("hi", "not a list"),
        ([{"role": "user"}], "no `role` and `content`"),
        ([{"role": "narrator", "content": "x"}], "role 'narrator'"),
        ([{"role": "user", "content": None}], "not text"),
        ([{"role": "assistant", "content": "x"}], "begins with an assistant"),
        ([CHAT[1]], "not the assistant's"),
        ([CHAT[1], {"role": "assistant", "content": " \n"}], "is empty"),
        ([{"role": "user", "content": "a <eos> b"}, CHAT[2]], "special token '<eos>'"),
    ],
)
def test_chats_that_cannot_be_used(messages, reason):
    with pytest.raises(ValueError, match=reason):
        encode_chat(OURS, messages)


def test_a_template_may_refuse_a_chat():
    strict = foreign(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    )
    with pytest.raises(ValueError, match="no system role"):
        encode_chat(strict, CHAT)
    with pytest.raises(ValueError, match="there is no question"):
        encode_prompt(OURS, CHAT)


def test_a_template_file_is_used_and_a_missing_one_reported(tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    tokenizer = foreign(MARKED)
    set_chat_template(tokenizer, str(tmp_path / "chat.jinja"))
    assert not ChatEncoder(tokenizer).marked
    with pytest.raises(UserError, match="cannot be read"):
        set_chat_template(tokenizer, str(tmp_path / "none.jinja"))


def test_a_template_is_known_by_its_name():
    tokenizer = foreign(MARKED)
    set_chat_template(tokenizer, "qwen3")
    assert "Training variant of Qwen3" in tokenizer.chat_template
    with pytest.raises(UserError, match="did you mean `qwen3`"):
        set_chat_template(tokenizer, "qwen-3")


def test_a_padding_id_inside_an_answer_stays_in_the_mask():
    """Masks do not depend on ids: a pad token that is also an ordinary token changes nothing."""
    tokenizer = foreign(CHATML)
    before = encode_chat(tokenizer, CHAT)
    tokenizer.pad_token = tokenizer.eos_token
    assert encode_chat(tokenizer, CHAT) == before


@needs("stories260K")
def test_a_real_llama_tokenizer_without_a_template():
    tokenizer = load_tokenizer(CORPORA / "stories260K/hf")
    ids, mask = encode_chat(tokenizer, CHAT)
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert ids.count(2) == 2
    assert all(mask[i] for i, id_ in enumerate(ids) if id_ == 2)
    assert masked_text(tokenizer, CHAT).split("</s>")[0].strip() == "Hi."
    assert ids[: len(encode_prompt(tokenizer, CHAT[:-1]))] == encode_prompt(tokenizer, CHAT[:-1])
