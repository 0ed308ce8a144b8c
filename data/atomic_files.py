"""Crash-safe writes: a kill at any moment leaves the old file or folder, or the new one, never a part."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replace the text of a file; readers see the old text or the new one, also when this process is killed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Replace a file by the JSON of `value`, as `write_text_atomic` does."""
    write_text_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def publish(temporary: str | Path, final: str | Path) -> None:
    """Rename a finished folder to its final name: its content is flushed first, the folder it replaces removed last.

    A kill between the two renames leaves `<final>.old`, which `recover` restores. Raises ValueError unless both are in
    the same parent folder.
    """
    temporary, final = Path(temporary), Path(final)
    if temporary.parent.resolve() != final.parent.resolve():
        raise ValueError(f"{temporary} and {final} are not in the same folder")
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
    """Complete the `publish` calls that a kill interrupted in `parent`, and remove unfinished ones (`*.tmp`)."""
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
    """Flush a file or a folder to the disk. Some network storage cannot flush a folder, and does not need to."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def replace_folder(source: str | Path, target: str | Path) -> None:
    """Replace `target` by a copy of the folder `source`, as `publish` does; `target` need not exist."""
    target = Path(target)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    publish(temporary, target)
