"""Models in Hugging Face layout: exports of a trained model, gathered as for a weight sync, and fresh models."""

from pathlib import Path
from typing import Any

from quadriga.actors.model.generation_config import take_generation_fields, writable
from quadriga.actors.weights.source import full_shape, gathered_buckets, persistent_buffers, saved_form

AUTO_CLASSES = {
    "policy": "AutoModelForCausalLM",
    "reward": "AutoModelForSequenceClassification",
    "critic": "AutoModelForTokenClassification",
}


def export_model(model: Any, folder: Path, kind: str, extra: dict[str, Any], bucket_bytes: int, write: bool) -> None:
    """Gather the whole model and, if `write`, save it to `folder`; all ranks must do so together.

    kind: `policy` (causal LM), `reward` (sequence classification, one label, head without bias) or `critic` (token
    classification, one label). extra: additional fields of config.json, such as `reward_shift` and `pad_token_id`; the
    shift takes up a bias of the reward head, so that score and shift together stay the same.
    Raises RuntimeError if a gathered tensor does not have its full shape.
    """
    state: dict[str, Any] = {}
    names = list(model.named_parameters())  # tied tensors once, as the layout requires
    expected = {name: full_shape(parameter) for name, parameter in names}
    head = _head_name(model.config) if kind == "critic" else "score"
    for bucket in gathered_buckets(model, bucket_bytes, names):
        if not write:
            continue
        for name, tensor in bucket:
            if tuple(tensor.shape) != expected[name]:
                raise RuntimeError(f"{name} was gathered with shape {tuple(tensor.shape)}, not {expected[name]}")
            state[name.replace("score.", f"{head}.") if name.startswith("score.") else name] = tensor.cpu().clone()
    if write:
        state |= {name: buffer.cpu().clone() for name, buffer in persistent_buffers(model)}
        state = {
            # A part of a larger tensor, such as one expert, is copied: files must not share memory.
            name: tensor if tensor.nbytes == tensor.untyped_storage().nbytes() else tensor.clone()
            for name, tensor in saved_form(model, state).items()
        }
        if kind == "reward":
            extra = extra | {"reward_shift": extra.get("reward_shift", 0.0) - float(state.pop("score.bias")[0])}
        _save(model, folder, kind, extra, state)


def _head_name(config: Any) -> str:
    """Return the name of the scalar head in a family's class for token classification, `score` if it has none."""
    import transformers
    from transformers.modeling_layers import GenericForTokenClassification

    family = transformers.AutoModelForTokenClassification._model_mapping.get(type(config), None)
    return "score" if family is None or issubclass(family, GenericForTokenClassification) else "classifier"


def _save(model: Any, folder: Path, kind: str, extra: dict[str, Any], state: dict[str, Any]) -> None:
    """Write weights and config.json, as the architecture of this kind in the model's family."""
    import copy

    import transformers
    from huggingface_hub import save_torch_state_dict

    config = copy.deepcopy(model.config)
    for key, value in extra.items():
        setattr(config, key, value)
    config.use_cache = True
    config.dtype = next(iter(state.values())).dtype
    # A family without such a class has no name for the architecture; base model and head are there all the same.
    architecture = getattr(transformers, AUTO_CLASSES[kind])._model_mapping.get(type(config), None)
    config.architectures = [architecture.__name__] if architecture else None
    if kind != "policy":
        config.num_labels = 1
    if kind == "critic":  # its bias has the shift of the reward model that it started from
        config.__dict__.pop("reward_shift", None)
    folder.mkdir(parents=True, exist_ok=True)
    moved = take_generation_fields(config)
    config.save_pretrained(folder)
    if kind == "policy":
        writable(model.generation_config, moved).save_pretrained(folder)
    save_torch_state_dict(state, folder)


def save_fresh_model(shape: dict[str, Any], tokenizer: Any, seed: int, folder: Path) -> None:
    """Write a causal LM with random weights and the tokenizer's special ids, to be loaded like any other model.

    shape: Hugging Face config fields. Raises UserError if they do not describe a model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from quadriga.data.errors import UserError

    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        fields = dict(shape)
        config = AutoConfig.for_model(fields.pop("model_type"), **(fields | ids))
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise UserError(f"model.shape does not describe a valid model: {type(error).__name__}: {error}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
