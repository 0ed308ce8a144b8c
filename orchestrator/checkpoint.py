"""Checkpoints: hosts, run state and exports in one folder, complete or absent, with a manifest of sizes and hashes."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.actors.group import ActorGroup
from quadriga.data.errors import Fault
from quadriga.data.rundir import RunDir, publish, write_json_atomic
from quadriga.orchestrator.run_state import RunState

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Export:
    """One model to write in Hugging Face layout: under which name, as which kind, with which extra config fields."""

    group: ActorGroup
    kind: str
    extra: dict[str, Any]


def save(
    run: RunDir,
    state: RunState,
    groups: Mapping[str, ActorGroup],
    exports: Mapping[str, Export],
    tokenizer: Any,
    keep: int,
) -> Path:
    """Write checkpoints/step-N: hidden until complete, then renamed; older ones go only afterwards.

    groups: trained roles. exports: folder name -> model. keep: newest checkpoints to keep.
    """
    final = run.checkpoint_dir(state.step)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    pending = [group.save(str(temporary / role)) for role, group in groups.items()]
    for save_ in pending:
        save_.result()
    written = [e.group.export(str(temporary / "export" / name), e.kind, e.extra) for name, e in exports.items()]
    for export in written:
        export.result()
    for name in exports:
        tokenizer.save_pretrained(temporary / "export" / name)
    state.write(temporary / "state.json")
    write_json_atomic(temporary / MANIFEST, _manifest(temporary))
    publish(temporary, final)
    for step in run.checkpoint_steps()[:-keep]:
        shutil.rmtree(run.checkpoint_dir(step))
    return final


def latest(run: RunDir) -> Path | None:
    """The newest checkpoint, verified. None before the first.

    Raises Fault when it is damaged, naming the file.
    """
    steps = run.checkpoint_steps()
    if not steps:
        return None
    folder = run.checkpoint_dir(steps[-1])
    verify(folder)
    return folder


def restore(folder: Path, groups: Mapping[str, ActorGroup]) -> RunState:
    """Load every group from a verified checkpoint; returns its state."""
    state = RunState.read(folder / "state.json")
    for pending in [group.load(str(folder / role), state.step) for role, group in groups.items()]:
        pending.result()
    return state


def publish_exports(run: RunDir, checkpoint: Path) -> None:
    """Make a checkpoint's models those of the run: export/<name>."""
    for source in sorted((checkpoint / "export").iterdir()):
        temporary = run.export_dir / f".{source.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        publish(temporary, run.export_dir / source.name)


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises Fault naming the first file that is missing, cut or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise Fault(f"The checkpoint {folder} has no readable manifest: {error}", "resume") from error
    for name, (size, digest) in manifest.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size or _sha256(file) != digest:
            raise Fault(
                f"The checkpoint {folder} is damaged: {name} is not what was written. Remove it to go on from "
                "the one before.",
                "resume",
            )


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): (file.stat().st_size, _sha256(file)) for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
