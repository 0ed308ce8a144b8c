"""Secrets: keys and variables with the name of one, and passwords in URLs, stay out of the files of a run."""

import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET_KEY = re.compile(
    r"(^|[_.-])(token|password|passwd|secret|credentials?|authorization)$"
    r"|(api|access|secret|private|license)[_-]?key([_-]id)?$",
    re.IGNORECASE,
)
_SPECIAL_TOKEN = re.compile(r"(^|[_.-])(pad|bos|eos|unk|sep|cls|mask|stop|end)_token$", re.IGNORECASE)
_SHORTEST_SECRET = 12
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def without_secrets(value: Any) -> Any:
    """Return a copy without keys that name secrets, passwords in URLs, and values of secret environment variables."""
    secrets = {v: k for k, v in os.environ.items() if names_secret(k) and len(v) >= _SHORTEST_SECRET}
    return _strip(value, secrets)


def _strip(value: Any, secrets: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {k: _strip(v, secrets) for k, v in value.items() if not (names_secret(k) and isinstance(v, str))}
    if isinstance(value, list | tuple):
        return [_strip(item, secrets) for item in value]
    if isinstance(value, str):
        for secret, name in secrets.items():
            value = value.replace(secret, f"${name}")
        return _URL_PASSWORD.sub("***", value)
    return value


def names_secret(key: Any) -> bool:
    """Return whether a key or an environment variable has the name of a secret, such as `WANDB_API_KEY`."""
    return isinstance(key, str) and bool(_SECRET_KEY.search(key)) and not _SPECIAL_TOKEN.search(key)
