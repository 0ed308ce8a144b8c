"""A generated job runs on two nodes, is warned of its time limit, is queued again and ends as if nothing had been."""

import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.slurm_nodes import JOB, Slurm, slurm_nodes, why_not
from helpers.small_stages import stage
from rich.console import Console

from quadriga.data.rundir import RunDir
from quadriga.launch.batch.slurm import launch_slurm
from quadriga.launch.config.load import build
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = [
    pytest.mark.integration,
    pytest.mark.cluster,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

STEPS, PATIENCE = 6, 300
SLOW = {"planned": [{"action": "slow", "role": "actor", "step": 2, "seconds": 6}]}
"""A step that lasts long enough for a signal to come in it."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    with slurm_nodes(tmp_path / "slurm") as slurm:
        monkeypatch.setenv("PATH", str(slurm.commands), prepend=":")
        monkeypatch.setenv("STUB", str(slurm.stub))
        # The second node waits so long for a head that has ended; `ray symmetric-run` itself for one that is ending.
        monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
        yield slurm


# Most of the exclusive form's time is `ray symmetric-run` waiting: for the head, for all nodes, for the lost head.
@pytest.mark.parametrize("exclusive", [pytest.param(True, id="exclusive"), pytest.param(False, id="shared")])
def test_a_job_goes_on_after_its_time_limit(exclusive: bool, slurm: Slurm, made_model: Path, tmp_path: Path) -> None:
    raw = stage("sft", tmp_path, made_model)
    job = {"nodes": 2, "cpus": 1, "exclusive": exclusive}
    raw |= {"total_steps": STEPS, "cluster": raw["cluster"] | {"slurm": job}, "faults": SLOW}
    run_dir, folder = RunDir(raw["run_dir"]), tmp_path / "the job's files"
    assert launch_slurm(build(raw), Console(quiet=True), False, folder) == 0

    process = slurm.start()
    try:
        wait_for_row(run_dir, process, folder / f"{JOB}.log")
        token = folder / f".token-{JOB}"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(value := token.read_text()) == 64
        assert value not in everything_visible()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(PATIENCE) == 130, (folder / f"{JOB}.log").read_text()
    finally:
        process.kill()
    assert slurm.requeued() == [str(JOB)] and not token.exists() and not slurm.left_behind()
    done = len(read_metrics(run_dir.metrics_path))
    assert 1 <= done < STEPS and run_dir.checkpoint_steps() == [done]

    process = slurm.start()
    try:
        assert process.wait(PATIENCE) == 0, (folder / f"{JOB}.log").read_text()
    finally:
        process.kill()
    assert slurm.requeued() == [str(JOB)]
    assert [attempt["status"] for attempt in run_dir.read_run()["attempts"]] == ["interrupted", "finished"]
    assert [row["global_step"] for row in read_metrics(run_dir.metrics_path)] == list(range(1, STEPS + 1))


def everything_visible() -> str:
    """Command lines and environments of all processes: what `ps` and a batch system's accounting show."""
    seen = []
    for file in Path("/proc").glob("[0-9]*/*"):
        if file.name in ("cmdline", "environ"):
            try:
                seen.append(file.read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\0".join(seen)


def wait_for_row(run_dir: RunDir, process: "subprocess.Popen[Any]", log: Path) -> None:
    """Until the first step is written down."""
    deadline = time.monotonic() + PATIENCE
    while not read_metrics(run_dir.metrics_path):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
