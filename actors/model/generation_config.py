"""Generation settings of an exported model, in the form that transformers writes and reads back without complaint."""

import copy
import re
from collections.abc import Mapping
from typing import Any

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Fields that mean something only where answers are drawn."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FIELD = re.compile(r"`(\w+)`")


def take_generation_fields(config: Any) -> dict[str, Any]:
    """Remove the generation settings that old models have in config.json, where transformers refuses to write them.

    config: changed in place. Returns the settings.
    """
    fields: dict[str, Any] = config._get_generation_parameters()
    for name in fields:
        config.__dict__.pop(name, None)
    return fields


def writable(generation_config: Any, fields: Mapping[str, Any]) -> Any:
    """Return a copy of a GenerationConfig that passes the strict validation of `save_pretrained`.

    fields: further settings, for those that it does not have. Many models ship `temperature` or `top_p` without
    `do_sample`: loading warns, writing is an error. Their authors meant sampling, and vLLM samples with them, so
    `do_sample` is set. Settings that contradict each other in other ways are left out; the token ids always stay.
    """
    config = copy.deepcopy(generation_config)
    for name, value in fields.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    if config.do_sample is not True and any(_is_set(config, name) for name in SAMPLING):
        config.do_sample = True
    while (complaint := _complaint(config)) is not None:
        named = [name for name in _FIELD.findall(complaint) if getattr(config, name, None) is not None]
        if not named:
            return type(config)(**{name: getattr(config, name, None) for name in TOKENS})
        for name in named:
            setattr(config, name, None)
    return config


def _is_set(config: Any, name: str) -> bool:
    """Return whether a sampling setting has a value that greedy decoding contradicts."""
    neutral = {
        "temperature": 1.0,
        "top_p": 1.0,
        "typical_p": 1.0,
        "top_k": 50,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
    }
    value = getattr(config, name, None)
    return value is not None and value != neutral.get(name)


def _complaint(config: Any) -> str | None:
    """Return the reason why a config would not be written, None if it would."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None
