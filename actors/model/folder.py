"""Facts of a model folder as `save_pretrained` writes it: what its config, generation config and weights say."""

import json
from pathlib import Path
from typing import Any

from quadriga.actors.settings import ModelSettings
from quadriga.data.errors import UserError


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of a model folder.

    Raises UserError where there is none.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(f"{path} is no model: it has no config.json. Give a folder written by save_pretrained.")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}). Is the folder complete?") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{file} names no model_type, so it is no Hugging Face model.")
    return config


def model_path(model: ModelSettings, key: str) -> str:
    """The folder of a model that must exist already, absolute: actors need not share our working directory.

    Raises UserError for a shape without weights, or a folder that holds no model.
    """
    if model.path is None:
        raise UserError(f"`{key}.shape` has no weights; this stage starts from `{key}.path`, a trained model's folder.")
    read_config(model.path)
    return str(Path(model.path).absolute())


def check_context(path: str | Path, tokens: int, key: str) -> None:
    """Raises UserError when a model cannot read sequences of `tokens` tokens."""
    config = read_config(path)
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    if limit is not None and tokens > limit:
        raise UserError(f"{key} allows sequences of {tokens} tokens, but the context of {path} is {limit}. Lower it.")


def end_tokens(path: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's eos and those of generation_config.json."""
    file = Path(path) / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    more = named if isinstance(named, list) else [named]
    return tuple(sorted({id_ for id_ in [tokenizer.eos_token_id, *more] if id_ is not None}))


def reward_shift(path: str | Path) -> float:
    """What a reward model's config says is to be subtracted from its logit; 0 for models that do not say."""
    return float(read_config(path).get("reward_shift", 0.0))


def check_reward_head(path: str | Path) -> None:
    """Check that a folder holds a trained reward head: one score per sequence.

    Raises UserError where the head is missing (the folder of a causal LM) or has several labels.
    """
    found = stored_head(path)
    if found is None:
        raise UserError(
            f"{path} has no trained reward head (no `score.weight` or `classifier.weight` among its weights), so its "
            "scores would be those of a random head. Give the export of a `stage: reward` run (export/reward), or a "
            "sequence-classification model with one label."
        )
    if found.shape[0] != 1:
        raise UserError(
            f"The head of {path} has {found.shape[0]} labels, and a reward model has one: the score. Give a "
            "sequence-classification model that was trained with `num_labels=1`."
        )


def stored_head(path: str | Path) -> Any:
    """The scalar head's weight [labels, hidden size] in a folder of safetensors, or None."""
    from safetensors import safe_open

    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in ("score.weight", "classifier.weight"):
                if name in tensors.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    return tensors.get_tensor(name)
    return None


def check_same_tokenizer(policy: str | Path, reward: str | Path) -> None:
    """Raises UserError when policy and reward model do not share a vocabulary: token ids are passed as they are."""
    from quadriga.data.tokens.tokenizer import load_tokenizer

    if load_tokenizer(policy).get_vocab() != load_tokenizer(reward).get_vocab():
        raise UserError(
            f"The reward model {reward} has another tokenizer than the policy {policy}. Answers are scored as token "
            "ids, so both must share one: train the reward model from this policy's family."
        )
