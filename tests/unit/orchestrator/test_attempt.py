"""An attempt: its record in run.json, its time, and changes that it refuses."""

import errno
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.data.tokens import clock
from quadriga.orchestrator.attempt import failure_recorded, run_stage
from quadriga.orchestrator.stages.sft.spec import SftStage


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory with an attempt under way."""
    run = RunDir.create(tmp_path / "run")
    run.start_attempt({})
    return run


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("set the batch size"), "failed", "set the batch size"),
        (Fault("died", phase="update"), "failed", "update: died"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "failed", "FileNotFoundError: [Errno 2] no such file"),
        (KeyboardInterrupt(), "interrupted", "stopped by the user before the step was finished"),
    ],
)
def test_an_exception_is_recorded_and_let_through(run: RunDir, error: BaseException, status: str, text: str) -> None:
    with pytest.raises(type(error)) as raised, failure_recorded(run):
        raise error
    assert raised.value is error
    ended = run.read_run()["attempts"][-1]
    assert (ended["status"], ended["error"]) == (status, text)


def test_a_full_disk_is_a_fault_with_its_cause(run: RunDir) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    sentence = r"commit: .* cannot be written: No space left on device"
    with pytest.raises(Fault, match=sentence) as raised, failure_recorded(run):
        raise full
    assert raised.value.__cause__ is full
    assert run.read_run()["attempts"][-1]["error"] == str(raised.value)


class Unreached(Exception):
    """The stage was allowed to run."""


@pytest.fixture
def resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that runs a fine-tuning stage in a directory that already has a checkpoint, up to its trainer."""

    def unreached(settings: object) -> None:
        raise Unreached

    monkeypatch.setattr("quadriga.orchestrator.attempt.trainer_class", unreached)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "{n}", "completion": "a"}}\n' for n in range(4)))
    config = {"stage": "sft", "name": "a", "model": {"path": "m"}, "data": {"train": str(file)}}

    def run(*allowed: str, **changes: object) -> None:
        run = RunDir.create(tmp_path / "run")
        (run.checkpoint_dir(5)).mkdir(exist_ok=True)
        with pytest.raises(Unreached):
            run_stage(SftStage.model_validate(config | changes), run, allowed)

    run()
    return run


def test_the_same_rows_resume(resume: Callable[..., None]) -> None:
    resume()


def test_rows_that_went_are_refused_until_allowed(resume: Callable[..., None], tmp_path: Path) -> None:
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[::2]))
    sentence = (
        r"started with other rows: `data.train.0` was 4 rows and is 2 rows, with other content.* --allow-changed d"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=sentence):
            resume()
    resume("data.train.0")
    resume()


def test_an_added_source_is_refused(resume: Callable[..., None], tmp_path: Path) -> None:
    both = {"train": [str(tmp_path / "rows.jsonl"), {"builtin": "assistant.demonstrations", "rows": 2}]}
    with pytest.raises(UserError, match=r"other settings: `data.train.1` was absent and is \{"):
        resume(data=both)
    resume("data.train", data=both)


def test_a_config_of_an_earlier_version_resumes(resume: Callable[..., None], tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "heldout_every" not in line))
    resume()
    with pytest.raises(UserError, match="`heldout_every` was None and is 3"):
        resume(heldout_every=3)


def test_templates_read_the_time_of_the_first_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that resumes tomorrow renders the same prompts."""
    run, seen = RunDir.create(tmp_path / "run"), []

    class Dated:
        def __init__(self, settings: object, run: RunDir): ...

        def execute(self, progress: object, replay: str) -> bool:
            seen.append(clock.strftime_now("%Y-%m-%dT%H:%M:%S"))
            return False

    monkeypatch.setattr("quadriga.orchestrator.attempt.trainer_class", lambda settings: Dated)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "completion": "a"}\n')
    data = {"train": str(tmp_path / "rows.jsonl")}
    settings = SftStage.model_validate({"stage": "sft", "name": "a", "model": {"path": "m"}, "data": data})
    run_stage(settings, run)
    first = datetime.fromisoformat(run.read_run()["attempts"][0]["started"]) - timedelta(days=1)
    run.update_run(attempts=[{**run.read_run()["attempts"][0], "started": first.isoformat()}])
    run_stage(settings, run)
    assert seen[1] == first.strftime("%Y-%m-%dT%H:%M:%S")
    assert seen[0][:10] > seen[1][:10]
    assert clock.strftime_now("%Y-%m-%d") >= seen[0][:10]
