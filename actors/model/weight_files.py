"""Weight files of a model folder, checked by their headers alone: whole, all there, and of a kind that can be trained.

A header is a few kilobytes in front of the tensors, so even the largest model is checked at once.
"""

import json
from pathlib import Path
from typing import Any

from quadriga.actors.model.folder import read_config
from quadriga.data.errors import UserError
from quadriga.data.weight_headers import read_header

TRAINABLE = {"F64", "F32", "F16", "BF16"}
"""Types of safetensors whose tensors can be trained."""


def check_weight_files(path: str | Path) -> None:
    """Raise UserError unless a folder has the whole weights of one unquantised text model in safetensors."""
    folder = Path(path)
    if (adapter := folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = json.loads(adapter.read_text()).get("base_model_name_or_path", "its base model")
        raise UserError(
            f"{path} is a LoRA adapter for {base}, not a model. Merge the two with peft's `merge_and_unload`, save the "
            "result with `save_pretrained`, and give its folder."
        )
    config = read_config(path)
    _check_config(path, config)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{path} has no .safetensors weights. Load it once with transformers and save it with `save_pretrained`."
        )
    headers = {file.name: read_header(file) for file in files}
    _check_index(folder, headers)
    for name, header in headers.items():
        for tensor, entry in header.items():
            if entry["dtype"] not in TRAINABLE:
                raise UserError(
                    f"{folder / name} holds quantised weights ({tensor} is {entry['dtype']}), which cannot be trained. "
                    "Give the model in bfloat16 or float32."
                )


def _check_config(path: str | Path, config: dict[str, Any]) -> None:
    """Raise UserError for a model whose config says that it is quantised, or more or other than a text decoder."""
    kind = config["model_type"]
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown method")
        raise UserError(
            f"{path} is quantised ({method}), and quantised weights cannot be trained. Give the model in bfloat16 or "
            "float32."
        )
    if parts := [name for name in ("vision_config", "audio_config") if name in config]:
        raise UserError(
            f"{path} is a multimodal model ({kind} with a {parts[0]}), and only text models are trained here. Save its "
            "text model alone with transformers, for example from `AutoModelForCausalLM`."
        )
    if config.get("is_encoder_decoder"):
        raise UserError(f"{path} is an encoder-decoder ({kind}), and only causal language models are trained here.")


def _check_index(folder: Path, headers: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Raise UserError unless the files hold every tensor of the index of a sharded model."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{index} cannot be read as an index of shards. Copy or download it again.") from None
    if missing := sorted(set(places.values()) - headers.keys()):
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(set(places.values()))} weight files, for example {missing[0]}. "
            "Copy or download them."
        )
    if lost := sorted(tensor for tensor, name in places.items() if tensor not in headers[name]):
        raise UserError(
            f"{folder}: {places[lost[0]]} does not hold {lost[0]}, as {index.name} says ({len(lost)} such tensors). "
            "The files are of different versions: download all of them again."
        )
