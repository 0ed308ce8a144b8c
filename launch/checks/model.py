"""Checks of models, their tokenizers and their data.

Each raises UserError for a problem, and otherwise returns a line for `quadriga doctor`, or None if there is nothing to
report. A path that an earlier stage of the pipeline has yet to write (a placeholder) passes.
"""

from itertools import islice
from typing import Any

from quadriga.actors.model.folder import check_reward_head
from quadriga.actors.model.weight_files import check_weight_files
from quadriga.actors.settings import ModelSettings
from quadriga.data.errors import UserError
from quadriga.data.records import Prompt
from quadriga.data.registry import import_object
from quadriga.data.settings import DataSettings, Source
from quadriga.launch.checks.report import Note
from quadriga.launch.config.load import is_placeholder
from quadriga.orchestrator.stages.base import StageData

SAMPLE_ROWS = 200
"""Rows per source that the checks read; the run itself reads all rows before it starts a process."""

CUTS_NOTED = 0.05
"""Share of answers cut by `max_tokens` from which there is a note."""

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's CPU attention supports."""


def check_model(model: ModelSettings) -> str | None:
    """Check that the folder holds a whole model that can be trained, or that the shape describes one."""
    if model.path is not None:
        if is_placeholder(model.path):
            return None
        check_weight_files(model.path)
    config = model_config(model)
    return f"model {model.path or 'with fresh weights'}: {config.model_type}, context {context_length(model)}"


def check_reward_model(path: str) -> None:
    """Check that the model gives one score per sequence, from a trained head."""
    if not is_placeholder(path):
        check_weight_files(path)
        check_reward_head(path)


def model_config(model: ModelSettings) -> Any:
    """Return the Hugging Face config of a model folder or a shape. Raises UserError if transformers rejects it."""
    from transformers import AutoConfig

    try:
        if model.path is not None:
            return AutoConfig.from_pretrained(model.path, trust_remote_code=False, local_files_only=True)
        fields = dict(model.shape or {})
        if "model_type" not in fields:
            raise UserError("`shape` has no `model_type`: it names the architecture, for example `llama` or `gpt2`.")
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds for a config it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{model.path or 'The shape'} is not a model that transformers knows: {reason}") from None


def context_length(model: ModelSettings) -> int | None:
    """Return the model's context in tokens, or None when it is unlimited or not known yet."""
    if model.path is not None and is_placeholder(model.path):
        return None
    return getattr(model_config(model), "max_position_embeddings", None)


def check_context(model: ModelSettings, tokens: int, key: str) -> None:
    """Check that the model's context holds sequences of `tokens` tokens, which the settings `key` allow."""
    context = context_length(model)
    if context is not None and tokens > context:
        raise UserError(
            f"`{key}` allows sequences of {tokens} tokens, but the context of {model.path or 'the shape'} is "
            f"{context} tokens. Lower it."
        )


def check_cpu_head_size(model: ModelSettings) -> str | None:
    """Check that vLLM on CPU has an attention kernel for the model's head size."""
    if model.path is not None and is_placeholder(model.path):
        return None
    config = model_config(model)
    if getattr(config, "kv_lora_rank", None):
        raise UserError(
            f"vLLM cannot generate with {model.path or 'this shape'} on CPU: its family ({config.model_type}) has "
            "latent attention, with which vLLM's log-probs on CPU are not the model's. Use another family, or a GPU."
        )
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    if size is not None and size not in CPU_HEAD_SIZES:
        raise UserError(
            f"vLLM cannot generate with {model.path or 'this shape'} on CPU: its attention heads have {size} elements "
            f"(head_dim), and vLLM's CPU attention supports {', '.join(map(str, CPU_HEAD_SIZES))}. Use a model with "
            "one of these, or a GPU."
        )
    return f"vLLM on CPU supports head size {size}" if size else None


def check_tensor_parallel(model: ModelSettings, tensor_parallel: int) -> None:
    """Check that vLLM can give each of its GPUs the same number of attention heads."""
    # One divides any number, and reading the config imports transformers, which takes seconds.
    if tensor_parallel == 1 or (model.path is not None and is_placeholder(model.path)):
        return
    heads = getattr(model_config(model), "num_attention_heads", None)
    if heads is not None and heads % tensor_parallel:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise UserError(
            f"`cluster.rollout.tensor_parallel` is {tensor_parallel}, which does not divide the {heads} attention "
            f"heads of {model.path or 'this shape'}. Set it to one of {divisors}."
        )


def check_tokenizer(folder: str, template: str | None, form: str, model: ModelSettings) -> str:
    """Check the tokenizer and, on a chat, its template. form: that of the rows, as in `StageData`.

    Answers must have their end token inside the loss mask, and the tokens of a prompt must not depend on the answer;
    prompts need no mask. What is encoded must decode to the same text, and every token needs an embedding.
    """
    from quadriga.data.tokens.chat import ChatEncoder, set_chat_template
    from quadriga.data.tokens.comparison import CHAT
    from quadriga.data.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    set_chat_template(tokenizer, template)
    encoder = ChatEncoder(tokenizer)
    facts = [f"tokenizer {folder}: {len(tokenizer)} tokens"]
    if form == "text":
        ids, texts = tokenizer(CHAT[0]["content"]).input_ids, [CHAT[0]["content"]]
    else:
        texts = [message["content"] for message in (CHAT[:3] if form == "prompts" else CHAT)]
        try:
            prompt = encoder.encode_prompts([encoder.render_prompt(CHAT[:3])])[0]
            ids = prompt
            if form == "answers":
                ids, _ = encoder.encode([encoder.render(CHAT)])[0]
        except ValueError as error:
            raise UserError(f"The chat template of {folder} cannot render a plain chat: {error}.") from None
        if ids[: len(prompt)] != prompt:
            raise UserError(f"With the chat template of {folder} the tokens of a prompt change when an answer follows.")
        facts.append(f"answers end with {' or '.join(map(repr, tokenizer.convert_ids_to_tokens(list(encoder.ends))))}")
    facts.insert(1, "no BOS" if ids[0] != tokenizer.bos_token_id else "one BOS")
    text = tokenizer.decode(ids)
    if not all(content in text for content in texts):
        raise UserError(f"The tokenizer in {folder} does not decode a chat to the text that was encoded: {text!r}.")
    embeddings = model_config(model).vocab_size
    if model.path is not None and len(tokenizer) > embeddings:  # fresh weights take the tokenizer's size
        raise UserError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, but the model has only {embeddings} "
            "embeddings. Resize the model's embeddings, or use its own tokenizer."
        )
    return ", ".join(facts)


def made_later(data: DataSettings) -> bool:
    """Return whether an earlier stage of the pipeline has yet to write some of the rows."""
    return any(is_placeholder(source.path or "") for source in [*data.train, *data.heldout])


def check_data(data: StageData, seed: int, folder: str) -> str:
    """Check that the first rows of every source can be tokenized. folder: the tokenizer's."""
    from quadriga.data.tokens.tokenizer import load_tokenizer

    rows = load_rows(data, few_rows(data.source), load_tokenizer(folder), seed)
    if isinstance(rows.train[0], Prompt):
        longest = max(len(prompt.token_ids) for prompt in rows.train)
        return f"{data.key} read: {len(rows.train)} of a sample, up to {longest} tokens"
    text = f"{data.key} read: {len(rows.train)} rows of a sample, {len(rows.skipped)} left out"
    text = ". ".join([text, *(note.removesuffix(".") for note in rows.notes)])
    cut = rows.cuts.sentence(data.source.max_tokens)
    if cut is None or rows.cuts.cut < CUTS_NOTED * rows.cuts.answers:
        return text
    return Note(f"{text}; {cut}. Raise `{data.key}.max_tokens`, or shorten the rows.")


def load_rows(data: StageData, source: DataSettings, tokenizer: Any, seed: int) -> Any:
    """Return the rows of a source as the stage's trainer reads them: a Split. Raises UserError as its loader does."""
    try:
        load = import_object(data.loader)
    except ValueError as error:
        raise UserError(f"The rows of `{data.key}` cannot be read: {error}.") from error
    return load(source, tokenizer, seed)


def check_rows(data: DataSettings) -> str:
    """Check that the first rows of every source can be read. For models whose tokenizer does not exist yet."""
    from quadriga.data.loading.readers import BadRow, read_source

    rows = 0
    for source in [*data.train, *data.heldout]:
        before = rows
        for row in islice(read_source(_short(source)), SAMPLE_ROWS):
            if isinstance(row, BadRow) and data.on_bad_row == "error":
                raise UserError(f"{row}. Fix the row, or set `on_bad_row: skip` to leave such rows out and list them.")
            rows += 1
        if rows == before:
            raise UserError(f"The data set {source.path or source.builtin} is empty. Check the path.")
    return f"data read: {rows} rows of a sample"


def few_rows(data: DataSettings) -> DataSettings:
    """Return the same sources cut to a few rows and without a split: a held-out part of so few rows says nothing."""
    train, heldout = ([_short(source) for source in sources] for sources in (data.train, data.heldout))
    return data.model_copy(update={"train": train, "heldout": heldout, "heldout_fraction": 0.0})


def _short(source: Source) -> Source:
    # A built-in table without `rows` is an error, which the reader explains.
    rows = source.rows if source.builtin and source.rows is None else min(SAMPLE_ROWS, source.rows or SAMPLE_ROWS)
    return source.model_copy(update={"rows": rows, "split": None})
