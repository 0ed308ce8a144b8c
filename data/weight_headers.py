"""Headers of safetensors files: a few kilobytes in front of the tensors that tell their names, types and shapes."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError

LFS = b"version https://git-lfs"


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors of a safetensors file by name. Raises UserError for a file that is not whole."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(max(8, len(LFS)))
        if start.startswith(LFS):
            raise UserError(
                f"{file} is a Git LFS pointer of {size} bytes, not the weights. Run `git lfs pull` in that folder, or "
                "download the model again."
            )
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
        stream.seek(8)
        header = stream.read(length) if length <= size - 8 else b""
    try:
        tensors: dict[str, dict[str, Any]] = json.loads(header)
        tensors.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{file} is not a whole safetensors file: its header cannot be read ({size:,} bytes). Copy or download it "
            "again."
        ) from None
    if size != end:
        raise UserError(
            f"{file} is cut off or damaged: it has {size:,} bytes, and its header describes {end:,}. Copy or download "
            "it again."
        )
    return tensors


def count_parameters(path: str | Path) -> int:
    """Count the numbers in a folder's weight files. Raises UserError for a file that is not whole."""
    return sum(
        prod(entry["shape"]) for file in Path(path).glob("*.safetensors") for entry in read_header(file).values()
    )
