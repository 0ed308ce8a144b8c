"""Crash-safe writes: a kill at any moment leaves the old file or folder, or the new one, never a part."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replace a file such that a reader, or a kill, finds the old text or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def write_json_atomic(path: str | Path, value: Any) -> None:
    """`write_text_atomic` of JSON."""
    write_text_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def publish(temporary: str | Path, final: str | Path) -> None:
    """Give a finished folder its name: everything in it is on disk first, and the one it replaces goes last.

    Both must be in one parent folder. A kill between the two renames leaves `<final>.old`, which `recover` puts back.
    """
    temporary, final = Path(temporary), Path(final)
    if temporary.parent.resolve() != final.parent.resolve():
        raise ValueError(f"{temporary} and {final} are not in one folder")
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(parent: str | Path) -> None:
    """Finish the `publish` calls that a kill cut off in `parent`, and remove what was left unfinished (`*.tmp`)."""
    for old in Path(parent).glob("*.old"):
        final = old.with_suffix("")
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    for temporary in Path(parent).glob("*.tmp"):
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(source: str | Path, target: str | Path) -> None:
    """Replace `target` by a copy of the folder `source`, as `publish` does; `target` need not exist."""
    target = Path(target)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    publish(temporary, target)
