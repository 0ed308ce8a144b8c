"""Token ids of one chat, as the loaders make them."""

from transformers import PreTrainedTokenizerBase

from quadriga.data.records import Message
from quadriga.data.tokens.chat import ChatEncoder


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Return the token ids of a whole chat, and its loss mask: 1 on the assistant's tokens and their end tokens."""
    encoder = ChatEncoder(tokenizer)
    return encoder.encode([encoder.render(messages)])[0]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Return the token ids of a chat up to the place where the assistant's answer begins."""
    encoder = ChatEncoder(tokenizer)
    return encoder.encode_prompts([encoder.render_prompt(messages)])[0]
