"""Writes survive a kill at any moment: the old file or folder is there, or the new one."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from quadriga.data import atomic_files
from quadriga.data.atomic_files import publish, recover, write_json_atomic, write_text_atomic


def _folder(path: Path, text: str) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "sub/data").write_text(text)
    return path


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a.txt", "ünï\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ünï\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_interrupted_write_leaves_the_old_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_publish_replaces_a_folder(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(_folder(tmp_path / "policy.tmp", text), tmp_path / "policy")
        assert (tmp_path / "policy/sub/data").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_publish_needs_one_parent_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in the same folder"):
        publish(_folder(tmp_path / "policy", "one"), tmp_path / "x/policy")


def test_recover_removes_and_restores(tmp_path: Path) -> None:
    _folder(tmp_path / "policy.old", "whole")
    _folder(tmp_path / "critic.old", "old")
    _folder(tmp_path / "critic", "new")
    _folder(tmp_path / ".step-3.tmp", "half")
    (tmp_path / ".rankings.jsonl.7.tmp").write_text("half")
    recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["critic", "policy"]
    assert (tmp_path / "policy/sub/data").read_text() == "whole"
    assert (tmp_path / "critic/sub/data").read_text() == "new"


KILLED = """
import os, pathlib, sys
from quadriga.data.atomic_files import publish
calls = int(sys.argv[2])
def counted(real):
    def call(*arguments):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), 9)
        return real(*arguments)
    return call
pathlib.Path.rename = counted(pathlib.Path.rename)
os.fsync = counted(os.fsync)
root = pathlib.Path(sys.argv[1])
publish(root / "policy.tmp", root / "policy")
"""


@pytest.mark.parametrize("calls", range(8))
def test_kill_at_any_call_leaves_a_whole_folder(tmp_path: Path, calls: int) -> None:
    """The process really dies by SIGKILL at its n-th fsync or rename; the folder is then one of the two, whole."""
    publish(_folder(tmp_path / "policy.tmp", "old"), tmp_path / "policy")
    _folder(tmp_path / "policy.tmp", "new")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(calls)], env=os.environ, check=False)
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert done.returncode == (-9 if calls < 6 else 0)  # 3 fsyncs, 2 renames, 1 fsync
    assert (tmp_path / "policy/sub/data").read_text() == ("old" if calls < 5 else "new")


def test_storage_that_cannot_flush_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's EINVAL is passed over, a file's is not."""
    flush = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) or refuse_files:
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    refuse_files = False
    monkeypatch.setattr(os, "fsync", refuse)
    write_text_atomic(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    (tmp_path / "b.tmp").mkdir()
    (tmp_path / "b.tmp" / "file").write_text("inside")
    publish(tmp_path / "b.tmp", tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == "inside"
    refuse_files = True
    with pytest.raises(OSError, match="Invalid argument"):
        write_text_atomic(tmp_path / "a.txt", "other")
