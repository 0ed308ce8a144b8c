"""Names of model folders: a path, `~` included, or the name of a model that the local Hugging Face cache holds."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""Form of a name on the Hugging Face Hub, `organisation/model`."""


def local_folder(name: str) -> str:
    """Return the folder that a name stands for; nothing is downloaded.

    A path is returned with `~` replaced. A name of the Hub that is not a folder is looked up in the local cache, and
    returned unchanged if it is not there.
    """
    if name.startswith("~"):
        return os.path.expanduser(name)
    if not HUB_NAME.fullmatch(name) or Path(name).exists():
        return name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return name


def how_to_download(name: str) -> str:
    """Return a sentence that says how to get a model of the Hub, empty for a name that is not one."""
    if not HUB_NAME.fullmatch(name) or Path(name).exists():
        return ""
    return (
        f" If {name} is a model on the Hugging Face Hub: nothing is downloaded here. Get it with `huggingface-cli "
        f"download {name}`, after which that name is found in the local cache (HF_HOME), or give its folder."
    )


ModelPath = Annotated[str, AfterValidator(local_folder)]
"""Setting that names a model folder."""
