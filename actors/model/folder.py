"""Model folders as `save_pretrained` writes them: facts from config, generation config and weights, and checks."""

import json
from pathlib import Path
from typing import Any

from quadriga.actors.settings import ModelSettings
from quadriga.data.errors import UserError
from quadriga.data.model_path import how_to_download

HEADS = ("score", "classifier")
"""Names of the scalar head in Hugging Face's classes for sequence and token classification."""


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the config.json of a model folder. Raises UserError if there is none that names a model type."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(
            f"{path} is not a model folder: config.json is missing. Give a folder written by save_pretrained."
            + how_to_download(str(path))
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}). Is the folder complete?") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{file} does not name a model_type, so it is not the config of a Hugging Face model.")
    return config


def model_path(model: ModelSettings, key: str) -> str:
    """Return the absolute path of a model that must exist: actors may have another working directory.

    key: the setting that holds the model, for messages. Raises UserError for a shape without weights, or a folder that
    does not hold a model.
    """
    if model.path is None:
        raise UserError(f"`{key}.shape` has no weights; this stage starts from `{key}.path`, a trained model's folder.")
    read_config(model.path)
    return str(Path(model.path).absolute())


def context_length(path: str | Path) -> int | None:
    """Return the longest sequence that a model can read, in tokens; None if its config does not say."""
    config = read_config(path)
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    return None if limit is None else int(limit)


def check_context(path: str | Path, tokens: int, key: str) -> None:
    """Raise UserError if a model cannot read sequences of `tokens` tokens; key: the settings that allow them."""
    limit = context_length(path)
    if limit is not None and tokens > limit:
        raise UserError(f"{key} allows sequences of {tokens} tokens, but the context of {path} is {limit}. Lower it.")


def reward_shift(path: str | Path) -> float:
    """Return `reward_shift` of a reward model's config (score = logit - shift), 0 if it is missing."""
    return float(read_config(path).get("reward_shift", 0.0))


def check_reward_head(path: str | Path) -> None:
    """Raise UserError unless a folder holds a trained reward head with one label.

    The folder of a causal LM has no head at all.
    """
    head, _ = stored_head(path)
    if head is None:
        raise UserError(
            f"{path} has no trained reward head (no `score.weight` or `classifier.weight` among its weights), so its "
            "scores would be those of a random head. Give the export of a `stage: reward` run (export/reward), or a "
            "sequence-classification model with one label."
        )
    if head.shape[0] != 1:
        raise UserError(
            f"The head of {path} has {head.shape[0]} labels, and a reward model has one: the score. Give a "
            "sequence-classification model that was trained with `num_labels=1`."
        )


def stored_head(path: str | Path) -> tuple[Any, float]:
    """Return the scalar head in a folder of safetensors: weight [labels, hidden size] or None, and the first bias.

    Hugging Face's classes call it `score` or `classifier`, and only some of them have a bias; without, it is 0.
    """
    from safetensors import safe_open

    weight, bias = None, 0.0
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in set(tensors.keys()) & {f"{head}.{kind}" for head in HEADS for kind in ("weight", "bias")}:
                if name.endswith("weight"):
                    weight = tensors.get_tensor(name)
                else:
                    bias = float(tensors.get_tensor(name)[0])
    return weight, bias


def check_same_tokenizer(policy: str | Path, reward: str | Path, template: str | None = None) -> None:
    """Raise UserError unless the reward model reads the policy's token ids as the chat that they stand for.

    template: `chat_template` of the policy's prompts. The reward model's is the one that it was exported with.
    """
    from quadriga.data.tokens.chat import set_chat_template
    from quadriga.data.tokens.comparison import prompt_difference, same_vocabulary
    from quadriga.data.tokens.tokenizer import load_tokenizer

    own, other = load_tokenizer(policy), load_tokenizer(reward)
    set_chat_template(own, template)
    if not same_vocabulary(own, other):
        raise UserError(
            f"The reward model {reward} and the policy {policy} have different tokenizers. Answers are scored as token "
            "ids, so both must share one: train the reward model from this policy's family."
        )
    if difference := prompt_difference(own, other):
        raise UserError(
            f"The reward model {reward} and the policy {policy} write a chat as different tokens, so its scores would "
            f"be of a form that it was not trained on. The policy's prompt: {difference[0]!r}; the reward model's: "
            f"{difference[1]!r}. Set `prompts.chat_template` to the template of the reward model, or train it with the "
            "policy's."
        )
