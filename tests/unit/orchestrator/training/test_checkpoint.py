"""Checkpoint folders: whole or not there, and every way to damage one is seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from quadriga.data.errors import Fault
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.training import checkpoint
from quadriga.orchestrator.training.run_state import RunState


class Part:
    """A stand-in for a group that writes files: what is in them does not matter here."""

    world = 2

    def __init__(self, error: Exception | None = None):
        self.error = error

    def save(self, folder: str) -> "Part":
        (Path(folder) / "state").mkdir(parents=True)
        for rank in range(self.world):
            (Path(folder) / "state" / f"rank-{rank}.pt").write_bytes(bytes(range(256)) * 4)
        return self

    def result(self) -> None:
        if self.error:
            raise self.error


def save(run: RunDir, step: int, part: Part | None = None) -> Path:
    """A checkpoint of one role after so many steps."""
    state = RunState(
        step=step, tracker_id="ab12", kl={"coefficient": 0.1}, tokens=7, measured=[(2, 0.5)], best=(2, 0.5)
    )
    return checkpoint.save(run, state, {"actor": part or Part()}, {}, None)  # type: ignore[dict-item]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """With checkpoints after three and six steps."""
    run = RunDir.create(tmp_path / "run")
    save(run, 3)
    save(run, 6)
    return run


def flip_a_bit(folder: Path) -> None:
    file = folder / "actor/state/rank-1.pt"
    data = bytearray(file.read_bytes())
    data[100] ^= 4
    file.write_bytes(data)


def truncate(folder: Path) -> None:
    file = folder / "actor/state/rank-0.pt"
    file.write_bytes(file.read_bytes()[:-1])


def empty_a_file(folder: Path) -> None:
    (folder / "actor/state/rank-0.pt").write_bytes(b"")


def zero_a_file(folder: Path) -> None:
    """What a lost page cache leaves: the right size, no content."""
    (folder / "actor/state/rank-0.pt").write_bytes(bytes(1024))


def lose_a_rank(folder: Path) -> None:
    (folder / "actor/state/rank-1.pt").unlink()


def delete_half(folder: Path) -> None:
    shutil.rmtree(folder / "actor")


def lose_the_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_the_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text()[:-9])


def replace_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def swap_files(folder: Path) -> None:
    """The right bytes under the wrong names."""
    state, actor = folder / "state.json", folder / "actor/state/rank-0.pt"
    state_bytes, actor_bytes = state.read_bytes(), actor.read_bytes()
    state.write_bytes(actor_bytes)
    actor.write_bytes(state_bytes)


DAMAGES = [
    flip_a_bit,
    truncate,
    empty_a_file,
    zero_a_file,
    lose_a_rank,
    delete_half,
    lose_the_state,
    lose_the_manifest,
    cut_the_manifest,
    replace_the_manifest,
    swap_files,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run: RunDir, damage: Callable[[Path], None]) -> None:
    damage(run.checkpoint_dir(6))
    told: list[tuple[str, str]] = []
    found = checkpoint.latest_valid(run, lambda folder, reason: told.append((folder.name, reason)))
    assert found == run.checkpoint_dir(3)
    ((name, reason),) = told
    assert name == "step-6.damaged" and str(run.checkpoint_dir(6)) in reason
    assert run.checkpoint_steps() == [3]
    assert checkpoint.latest_valid(run) == found


def test_an_emptied_folder_and_a_torn_write_are_no_checkpoints(run: RunDir) -> None:
    run.checkpoint_dir(9).mkdir()
    torn = run.checkpoints_dir / ".step-12.4242.tmp"
    shutil.copytree(run.checkpoint_dir(6), torn)
    assert checkpoint.latest_valid(run) == run.checkpoint_dir(6)
    RunDir.create(run.path)
    assert not torn.exists()


def test_everything_in_the_state_comes_back(run: RunDir) -> None:
    folder = run.checkpoint_dir(6)
    state = RunState.read(folder / "state.json")
    assert state == RunState(6, "ab12", {"coefficient": 0.1}, 7, 0, 0.0, [(2, 0.5)], (2, 0.5))
    assert json.loads((folder / "manifest.json").read_text())["ranks"] == {"actor": 2}


def test_a_save_that_fails_leaves_the_one_before(run: RunDir) -> None:
    broken = Part(Fault("actor 0 cannot write /x: No space left on device", phase="checkpoint"))
    with pytest.raises(Fault, match=r"step-9 could not be written: .*No space left.*newest valid one is step-6"):
        save(run, 9, broken)
    assert run.checkpoint_steps() == [3, 6]
    assert [path.name for path in run.checkpoints_dir.iterdir() if path.name.startswith(".")] == []
    checkpoint.verify(run.checkpoint_dir(6))


def test_old_ones_go_but_for_the_newest_and_the_best(run: RunDir) -> None:
    for step in (9, 12):
        save(run, step)
    checkpoint.prune(run, 2, best=3)
    assert run.checkpoint_steps() == [3, 9, 12]
    checkpoint.prune(run, 1, best=None)
    assert run.checkpoint_steps() == [12]
