"""Tokenizers: byte-level BPE trained on texts, and existing ones."""

import logging
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from quadriga.data.errors import UserError
from quadriga.data.model_path import how_to_download
from quadriga.data.tokens.chat import ROLE_TOKENS, TEMPLATE, set_chat_template

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SPECIAL_TOKENS = (PAD, BOS, EOS, *ROLE_TOKENS)
"""Special tokens of a tokenizer trained here, with ids 0 to 5."""

MODEL_MAX_LENGTH = 1 << 20
"""Length that no text reaches, to avoid warnings: the context length of the model is the real limit."""

log = logging.getLogger(__name__)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) with our special tokens and chat template.

    The vocabulary holds the six special tokens, 256 bytes and as many merges as fit; it is smaller than `vocab_size`
    where the texts do not yield that many. `save_pretrained` writes tokenizer.json, tokenizer_config.json and
    chat_template.jinja.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Plain text starts with BOS, so that every program that loads the tokenizer agrees with our training rows.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=list(ROLE_TOKENS),
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in the folder `path`, with a built-in chat template if it has none.

    Its pad token is one apart from the end token where there is a special token for it.
    Raises UserError when the folder holds no tokenizer, or when it has no end token.
    """
    if not Path(path).is_dir():
        raise UserError(
            f"There is no folder {path}, where a tokenizer was expected. Check the path.{how_to_download(str(path))}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a folder that is not a tokenizer
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path} does not hold a tokenizer that can be loaded: {reason[0]} "
            "A tokenizer folder has tokenizer.json and tokenizer_config.json, as `save_pretrained` writes them."
        ) from None
    if not tokenizer.is_fast or not len(tokenizer):
        raise UserError(f"{path} has no tokenizer.json. Load it once with transformers and save it with that file.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer in {path} has no `eos_token`. Name it in its tokenizer_config.json.")
    _choose_pad(tokenizer, str(path))
    set_chat_template(tokenizer)
    return tokenizer


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the pad token that a config may name; None where it is missing or is the end token.

    A program that finds the end of a sequence by its padding would overlook such an end token.
    """
    pad = tokenizer.pad_token_id
    return None if pad in (None, tokenizer.eos_token_id) else int(pad)


def _choose_pad(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Choose a pad token apart from the end token, where there is one, for programs that read an export.

    Nothing here needs one: batches are packed.
    """
    if pad_token_id(tokenizer) is not None:
        return
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for word in ("pad", "reserved", "unused", "unk"):
        candidates = [token for token in special if word in token.lower()]
        if word == "unk" and tokenizer.unk_token:
            candidates.append(tokenizer.unk_token)
        for token in candidates:
            if tokenizer.convert_tokens_to_ids(token) not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
                log.info("tokenizer %s: pad token set to %s, apart from the end token", path, token)
                tokenizer.pad_token = token
                return


def decode_answer(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Return the text of generated tokens, without special tokens and outer space."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=True)).strip()
