"""Two tokenizers are compared by what their models would read."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from quadriga.actors.model.folder import check_same_tokenizer
from quadriga.data.errors import UserError
from quadriga.data.tokens.chat import TEMPLATE, TEXT_TEMPLATE
from quadriga.data.tokens.comparison import prompt_difference, same_vocabulary
from quadriga.data.tokens.tokenizer import train_tokenizer


def trained() -> PreTrainedTokenizerBase:
    return train_tokenizer(["Good morning. What can I do?"] * 3, 300)


@pytest.fixture
def own() -> PreTrainedTokenizerBase:
    """The policy's tokenizer."""
    return trained()


@pytest.fixture
def other() -> PreTrainedTokenizerBase:
    """The reward model's tokenizer: the same until a test changes it."""
    return trained()


def test_equal_tokenizers_agree(own, other) -> None:
    assert same_vocabulary(own, other)
    assert prompt_difference(own, other) is None


@pytest.mark.parametrize("side", [0, 1])
def test_an_added_pad_token_changes_nothing(own, other, side: int) -> None:
    (own, other)[side].add_special_tokens({"pad_token": "<another pad>"})
    assert same_vocabulary(own, other)
    assert prompt_difference(own, other) is None


def test_an_added_word_makes_another_vocabulary(own, other) -> None:
    other.add_tokens(["morning"])
    assert not same_vocabulary(own, other)
    assert not same_vocabulary(other, own)


def test_other_merges_make_another_vocabulary(own) -> None:
    assert not same_vocabulary(own, train_tokenizer(["the cat sat on the mat"] * 3, 300))


def test_another_template_is_shown_in_both_forms(own, other) -> None:
    other.chat_template = TEXT_TEMPLATE
    assert prompt_difference(own, other) == (
        "<bos><user>Good morning.<assistant>",
        "<bos>User: Good morning.\nAssistant:",
    )


def test_templates_that_differ_in_earlier_turns_only_are_told_apart(own, other) -> None:
    other.chat_template = TEMPLATE.replace("| trim + eos_token", "| trim + ('' if loop.last else '.') + eos_token")
    first, second = prompt_difference(own, other) or ("", "")
    assert "What can I do?<eos>" in first
    assert "What can I do?.<eos>" in second


def test_a_bos_that_only_one_writes_is_a_difference(own, other) -> None:
    other.chat_template = TEMPLATE.replace("{{- bos_token }}\n", "")
    assert prompt_difference(own, other) is None, "the tokenizer writes it"
    other.backend_tokenizer.post_processor = None
    assert prompt_difference(own, other) == ("<bos><user>Good morning.<assistant>", "<user>Good morning.<assistant>")


def test_a_system_message_that_the_policy_refuses_is_not_compared(own, other) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    own.chat_template = strict
    assert prompt_difference(own, other) is None
    refused = prompt_difference(other, own)
    assert refused is not None
    assert "no system" in refused[1]


def test_the_folders_of_policy_and_reward_model_are_compared(own, other, tmp_path: Path) -> None:
    other.chat_template = TEXT_TEMPLATE
    own.save_pretrained(tmp_path / "policy")
    other.save_pretrained(tmp_path / "reward")
    with pytest.raises(
        UserError, match=r"'<bos><user>Good morning\.<assistant>'; the reward model's: '<bos>User: Good"
    ):
        check_same_tokenizer(tmp_path / "policy", tmp_path / "reward")
    (tmp_path / "text.jinja").write_text(TEXT_TEMPLATE)
    check_same_tokenizer(tmp_path / "policy", tmp_path / "reward", str(tmp_path / "text.jinja"))
