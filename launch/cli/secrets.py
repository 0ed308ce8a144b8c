"""Secrets of a run: the environment variables that it needs, and the file on its machine that may hold them."""

import os
from collections.abc import Sequence
from pathlib import Path

from quadriga.data.errors import UserError

NOT_OWNER = 0o077
"""Permission bits of everyone except the owner."""


def take_secrets(names: Sequence[str], file: Path | None) -> None:
    """Put the named secrets into the environment; values in `file` replace those that are already there.

    Raises UserError when one is in neither, or when others may read the file.
    """
    values = _read(file) if file is not None else {}
    os.environ.update({name: values[name] for name in names if name in values})
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        node = os.uname().nodename
        where = f"neither {file} nor the environment has it" if file else "it is not in the environment"
        raise UserError(
            f"The run needs {', '.join(missing)}, and on {node} {where}. Set it where Ray (or the run) is started, or "
            "keep `NAME=value` lines in a file there that only you may read, and give it with --secrets-file."
        )


def _read(file: Path) -> dict[str, str]:
    """Return the NAME=value lines of a file. `#` starts a comment line; `export` and quotes around values are dropped.

    Raises UserError when the file cannot be read, or when others may read it.
    """
    try:
        mode = file.stat().st_mode
        if mode & NOT_OWNER:
            raise UserError(
                f"{file} holds secrets, but others may read it (mode {mode & 0o777:o}): run `chmod 600 {file}`."
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
