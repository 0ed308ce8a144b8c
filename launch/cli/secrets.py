"""Secrets of a run: environment variables that it needs by name, and a file that may hold them on its machine."""

import os
from collections.abc import Sequence
from pathlib import Path

from quadriga.data.errors import UserError

OTHERS = 0o077
"""Permission bits of everybody but the owner."""


def take_secrets(names: Sequence[str], file: Path | None) -> None:
    """See to it that these variables are in the environment; what `file` has wins over what was there.

    Raises UserError when one is missing, or when others may read the file.
    """
    values = _read(file) if file is not None else {}
    os.environ.update({name: values[name] for name in names if name in values})
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        node = os.uname().nodename
        where = f"neither {file} nor the environment has it" if file else "the environment does not have it"
        raise UserError(
            f"The run needs {', '.join(missing)}, and on {node} {where}. Set it where Ray (or the run) is started, or "
            "keep `NAME=value` lines in a file there that only you may read, and give it with --secrets-file."
        )


def _read(file: Path) -> dict[str, str]:
    """The NAME=value lines of a file; `#` begins a comment line, `export` and quotes around a value are ignored."""
    try:
        mode = file.stat().st_mode
        if mode & OTHERS:
            raise UserError(
                f"{file} holds secrets and others may read it (mode {mode & 0o777:o}): run `chmod 600 {file}`."
            )
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"The secrets file {file} cannot be read on {os.uname().nodename}: {error.strerror}. It must be there on "
            "every node on which the run's driver may start."
        ) from None
    pairs = [line.strip().removeprefix("export ").partition("=") for line in lines]
    return {name.strip(): _unquoted(value.strip()) for name, _, value in pairs if not name.startswith("#")}


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
