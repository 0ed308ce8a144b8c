"""Comparison of two tokenizers with their chat templates: token ids of one pass to the other's model as they are."""

from transformers import PreTrainedTokenizerBase

from quadriga.data.errors import UserError
from quadriga.data.records import Message
from quadriga.data.tokens.chat import ChatEncoder

CHAT: list[Message] = [
    {"role": "user", "content": "Good morning."},
    {"role": "assistant", "content": "Good morning! What can I do?"},
    {"role": "user", "content": "Nothing, thanks."},
    {"role": "assistant", "content": "Gladly."},
]
"""The chat with which tokenizers and chat templates are tested."""
SYSTEM: Message = {"role": "system", "content": "Be brief."}
PROMPTS = (CHAT[:1], CHAT[:3], [SYSTEM, *CHAT[:1]])


def same_vocabulary(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether both give the same id to every token that text can produce.

    A special token that only one of them has, such as an added pad token, is produced by no text.
    """
    for tokenizer, against in ((one, other), (other, one)):
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        theirs = against.get_vocab()
        for token, id_ in tokenizer.get_vocab().items():
            if theirs.get(token, None) != id_ and (token in theirs or token not in special):
                return False
    return True


def prompt_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the first test prompt that the two encode differently, as text of each; None if there is none.

    A prompt that the template of `one` does not accept is not compared: no row can have its form.
    """
    first, second = ChatEncoder(one), ChatEncoder(other)
    for messages in PROMPTS:
        try:
            ids = _ids(first, messages)
        except ValueError:
            continue
        try:
            theirs = _ids(second, messages)
        except (ValueError, UserError) as error:
            return one.decode(ids), f"refused: {error}"
        if ids != theirs:
            return one.decode(ids), other.decode(theirs)
    return None


def _ids(encoder: ChatEncoder, messages: list[Message]) -> list[int]:
    return encoder.encode_prompts([encoder.render_prompt(messages)])[0]
