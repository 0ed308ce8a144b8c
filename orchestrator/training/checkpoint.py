"""Checkpoints: model shards, run state and exports in one folder, complete or absent, with a manifest of hashes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.actors.model.group import ActorGroup
from quadriga.data.atomic_files import publish, replace_folder, write_json_atomic
from quadriga.data.errors import Fault, Lost
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.training.run_state import RunState

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Export:
    """A model to write in Hugging Face layout: its kind, and extra fields of its config."""

    group: ActorGroup
    kind: str
    extra: dict[str, Any]


def save(
    run: RunDir, state: RunState, groups: Mapping[str, ActorGroup], exports: Mapping[str, Export], tokenizer: Any
) -> Path:
    """Write checkpoints/step-N: hidden until complete, then renamed and read back.

    groups: trained roles. exports: folder name -> model.
    Raises Fault when it cannot be written; what was there before is untouched. `prune` removes older ones.
    """
    from quadriga.data.tokens.chat import add_end_tokens

    final = run.checkpoint_dir(state.step)
    # Workers of a driver that was killed may still write for a moment: never into the folder of the next attempt.
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for saving in [group.save(str(temporary / role)) for role, group in groups.items()]:
            saving.result()
        written = [e.group.export(str(temporary / "export" / name), e.kind, e.extra) for name, e in exports.items()]
        for export in written:
            export.result()
        for name in exports:
            tokenizer.save_pretrained(temporary / "export" / name)
            add_end_tokens(temporary / "export" / name, tokenizer)
        state.write(temporary / "state.json")
        worlds = {role: group.world for role, group in groups.items()}
        write_json_atomic(temporary / MANIFEST, {"ranks": worlds, "files": _digests(temporary)})
        publish(temporary, final)
        verify(final)
    except Lost:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        newest = latest_valid(run)
        kept = f"The newest valid one is {newest.name}" if newest else "There is none before it"
        raise Fault(f"The checkpoint {final} could not be written: {error}. {kept}.", phase="checkpoint") from error
    return final


def prune(run: RunDir, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the one after step `best`."""
    for step in run.checkpoint_steps()[:-keep]:
        if step != best:
            shutil.rmtree(run.checkpoint_dir(step))


def latest_valid(run: RunDir, damaged: Callable[[Path, str], None] = lambda folder, reason: None) -> Path | None:
    """Return the newest checkpoint that matches its manifest; None without one.

    damaged: called with each newer one that does not, and why. It is set aside as `step-N.damaged`.
    """
    for step in reversed(run.checkpoint_steps()):
        folder = run.checkpoint_dir(step)
        try:
            verify(folder)
        except Fault as error:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            damaged(aside, str(error))
        else:
            return folder
    return None


def restore(folder: Path, groups: Mapping[str, ActorGroup]) -> RunState:
    """Load every group from a verified checkpoint; return its run state.

    A group whose number of ranks has changed is loaded through DeepSpeed's universal format. Raises Fault for a
    checkpoint that another version, or a run with other trained models, has written.
    """
    try:
        state = RunState.read(folder / "state.json")
    except (ValueError, TypeError, KeyError) as error:
        raise Fault(f"The state of {folder} cannot be read: {error}", phase="resume") from error
    ranks = json.loads((folder / MANIFEST).read_text())["ranks"]
    if missing := sorted(groups.keys() - ranks.keys()):
        known = ", ".join(sorted(ranks))
        raise Fault(f"The checkpoint {folder} holds {known}, and no {missing[0]}", phase="resume", process=missing[0])
    with tempfile.TemporaryDirectory(prefix=".universal-", dir=folder.parent) as scratch:
        other = [role for role, group in groups.items() if ranks[role] != group.world]
        converted = {role: _universal(folder, role, Path(scratch)) for role in other}
        loading = [g.load(str(folder / role), state.step, converted.get(role)) for role, g in groups.items()]
        for pending in loading:
            pending.result()
    return state


def _universal(folder: Path, role: str, scratch: Path) -> str:
    """Convert a role's shards to the format that any number of ranks can load; return its folder.

    It runs in a process of its own, because it imports DeepSpeed, and loads pickles, of a checkpoint just verified.
    """
    target = scratch / role / "state"
    source = folder / role / "state"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source)]
    command += ["--output_folder", str(target), "--num_extract_workers", "1", "--num_merge_workers", "1"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Fault(
            f"DeepSpeed could not convert {source} for another number of ranks: {last}", phase="resume", process=role
        )
    return str(target.parent)


def publish_exports(run: RunDir, checkpoint: Path) -> None:
    """Copy a checkpoint's models to the run's own export/<name>."""
    for source in sorted((checkpoint / "export").iterdir()):
        replace_folder(source, run.export_dir / source.name)


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises Fault naming the first file that is missing, cut or changed.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Fault(f"The checkpoint {folder} has no readable manifest: {error!r}", phase="resume") from error
    found = _digests(folder)
    for name, digest in files.items():
        if found.get(name) != digest:
            how = "missing" if name not in found else "not what was written"
            raise Fault(f"The checkpoint {folder} is damaged: {name} is {how}", phase="resume")


def _digests(folder: Path) -> dict[str, list[Any]]:
    """Return relative path -> [size, SHA-256] of every file but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor(max_workers=8) as threads:
        digests = list(threads.map(_sha256, files))
    return {
        str(file.relative_to(folder)): [file.stat().st_size, digest]
        for file, digest in zip(files, digests, strict=True)
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
