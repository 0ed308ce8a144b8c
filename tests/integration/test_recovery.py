"""Processes are killed, stopped and made to fail while stages run: they end with the bytes of a run nothing befell."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from helpers.small_stages import STEPS, chaos_ppo, digests, repeatable, stage

from quadriga.data.errors import Fault, UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.faults.injector import EVENT
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics
from quadriga.orchestrator.training import checkpoint

pytestmark = pytest.mark.integration

HEARTBEAT = 8
"""Seconds, as in chaos_ppo."""


@pytest.fixture(scope="module")
def chaos(
    ray_cluster: None, made_model: Path, made_reward: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RunDir]:
    """Runs PPO on two policy ranks and two rollout workers with these planned faults; without any, once."""
    quiet: list[RunDir] = []

    def run_with(*planned: dict[str, Any]) -> RunDir:
        if not planned and quiet:
            return quiet[0]
        folder = tmp_path_factory.mktemp("chaos")
        settings = build(chaos_ppo(folder, made_model, made_reward, {"planned": list(planned)}))
        assert run(settings) == 0
        if not planned:
            quiet.append(RunDir(settings.run_dir))
        return RunDir(settings.run_dir)

    return run_with


def same_history(one: RunDir, other: RunDir) -> None:
    """Same weights to the byte, same numbers, and every sample once."""
    assert digests(one.export_dir) == digests(other.export_dir)
    assert set(digests(one.export_dir)) == {"policy/model.safetensors", "critic/model.safetensors"}
    rows, others = read_metrics(one.metrics_path), read_metrics(other.metrics_path)
    assert [row["global_step"] for row in rows] == list(range(1, len(others) + 1))
    assert repeatable(rows) == repeatable(others)
    assert samples(one) == samples(other)
    assert set(samples(one).values()) == {1} and len(samples(one)) == 16 * len(rows)


def samples(run_dir: RunDir) -> Counter[tuple[int, str, int]]:
    """How often each sample (step, prompt id, index) is in the history."""
    tables = [pq.read_table(file).to_pydict() for file in sorted(run_dir.samples_dir.glob("step-*.parquet"))]
    return Counter(key for t in tables for key in zip(t["global_step"], t["prompt_id"], t["sample_index"], strict=True))


def injected(run_dir: RunDir) -> list[dict[str, Any]]:
    """The faults that happened."""
    return [event for event in run_dir.events() if event["event"] == EVENT]


def missed(run_dir: RunDir) -> list[str]:
    """Who was lost, in order."""
    return [event["process"] for event in run_dir.events() if event["event"] == "lost"]


def seconds_between(first: str, second: str) -> float:
    """Of two times as in run.json."""
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def gone(pids: list[int]) -> None:
    """Fails when one of these processes lives on, and says in which state. Ray kills a stopped one after 5 s."""
    deadline = time.monotonic() + 120
    while left := [state for pid in pids if (state := state_of(pid)) is not None]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def state_of(pid: int) -> str | None:
    """The name, state, parent and start of a process; None if there is none or it has ended (a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else f"{text[: text.rindex(')') + 1]} {fields[:2]} started {fields[19]}"


KILLED = [
    {"action": "kill", "role": "rollout", "rank": 1, "step": 2, "phase": "generate", "after": 0.05},
    {"action": "kill", "role": "reward", "step": 3, "phase": "score"},
    {"action": "kill", "role": "rollout", "rank": 0, "step": 4, "phase": "sync"},
    {"action": "kill", "role": "actor", "rank": 1, "step": 5, "phase": "update", "after": 0.02},
    {"action": "kill", "role": "reference", "step": 5, "phase": "generate"},
    {"action": "kill", "role": "critic", "step": 8, "phase": "values"},
    {"action": "raise", "role": "actor", "rank": 0, "step": 11, "phase": "update"},
]
STOPPED = [
    {"action": "stop", "role": "actor", "rank": 1, "step": 7, "phase": "update", "after": 0.02},
    {"action": "stop", "role": "rollout", "rank": 0, "step": 10, "phase": "generate"},
]


@pytest.fixture(scope="module")
def run_with_faults(chaos: Callable[..., RunDir]) -> RunDir:
    """A run in which a process of every role was lost, in every way."""
    return chaos(*KILLED, *STOPPED)


def test_lost_processes_of_every_role_change_nothing(run_with_faults: RunDir, chaos: Callable[..., RunDir]) -> None:
    assert {(e["action"], e["role"], e["rank"], e["step"]) for e in injected(run_with_faults)} == {
        (fault["action"], fault["role"], fault.get("rank", 0), fault["step"]) for fault in KILLED + STOPPED
    }
    roles = ["actor 0", "actor 1", "critic 0", "reference 0", "reward 0", "rollout 0", "rollout 1"]
    assert sorted(set(missed(run_with_faults))) == roles
    gone([event["pid"] for event in injected(run_with_faults) if event["action"] != "raise"])
    same_history(run_with_faults, chaos())


def test_stopped_processes_are_named_and_replaced_in_time(run_with_faults: RunDir) -> None:
    times = {row["global_step"]: row["time"] for row in read_metrics(run_with_faults.metrics_path)}
    for role, name in (("actor", "actor 1"), ("rollout", "rollout 0")):
        (happened,) = [e for e in injected(run_with_faults) if (e["action"], e["role"]) == ("stop", role)]
        noticed = next(
            e for e in run_with_faults.events() if "no sign of life" in e.get("cause", "") and e["process"] == name
        )
        assert seconds_between(happened["time"], noticed["time"]) <= HEARTBEAT + 10
        assert times[noticed["step"]] - datetime.fromisoformat(noticed["time"]).timestamp() <= 90


def command(config: dict[str, Any], folder: Path, *words: str) -> tuple[int, str]:
    """`quadriga run` of a config in a process of its own: exit code and what it said."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "quadriga.launch", "run", str(file), *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *_path()])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stdout + done.stderr


def _path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def killed_driver(folder: Path, model: Path, reward: Path, *planned: dict[str, Any]) -> RunDir:
    """A run whose driver was killed at these moments, started again by its supervising parent."""
    faults = {"planned": [{"action": "kill", "role": "driver"} | fault for fault in planned]}
    config = chaos_ppo(folder, model, reward, faults)
    code, said = command(config, folder, "--restart", str(len(planned)))
    assert code == 0, said
    run_dir, times = RunDir(config["run_dir"]), len(planned)
    assert [a["status"] for a in run_dir.read_run()["attempts"]] == ["lost"] * times + ["finished"]
    assert f"The run was killed by SIGKILL; starting it again ({times} of {times})." in " ".join(said.split())
    assert len(injected(run_dir)) == times
    gone([event["pid"] for event in injected(run_dir)])
    return run_dir


@pytest.mark.slow  # test_resume.py kills the driver of a run of one rank there
def test_a_driver_that_is_killed_while_it_writes_a_checkpoint_goes_on_by_itself(
    chaos: Callable[..., RunDir], made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    run_dir = killed_driver(tmp_path, made_model, made_reward, {"step": 9, "phase": "checkpoint", "after": 0.03})
    same_history(run_dir, chaos())


@pytest.mark.chaos
def test_a_driver_that_is_killed_in_a_step_goes_on_by_itself(
    chaos: Callable[..., RunDir], made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    moments = [{"step": 2, "phase": "generate"}, {"step": 5, "phase": "update", "after": 0.05}]
    same_history(killed_driver(tmp_path, made_model, made_reward, *moments), chaos())


@pytest.mark.parametrize("kind", ["pretrain", "sft", "reward"])
def test_a_killed_rank_of_a_supervised_stage_changes_nothing(
    uninterrupted_run: Callable[[str], RunDir], made_model: Path, tmp_path: Path, kind: str
) -> None:
    role = "reward" if kind == "reward" else "actor"
    faults = {"planned": [{"action": "kill", "role": role, "step": 3, "phase": "update", "after": 0.005}]}
    settings = build(stage(kind, tmp_path, made_model) | {"faults": faults, "checkpoint": {"every_steps": 2}})
    assert run(settings) == 0
    run_dir, whole = RunDir(settings.run_dir), uninterrupted_run(kind)
    assert len(injected(run_dir)) == 1 and missed(run_dir) == [f"{role} 0"]
    assert digests(run_dir.export_dir) == digests(whole.export_dir)
    rows = read_metrics(run_dir.metrics_path)
    assert [row["global_step"] for row in rows] == list(range(1, STEPS + 1))
    assert repeatable(rows) == repeatable(read_metrics(whole.metrics_path))


@pytest.mark.chaos
def test_a_pipeline_goes_on_in_the_stage_and_round_that_was_killed(
    ray_cluster: None, made_model: Path, tmp_path: Path
) -> None:
    """Two rounds of PPO after fine-tuning; the driver is killed in the second step of each."""

    def pipeline(name: str, faults: dict[str, Any]) -> dict[str, Any]:
        folder = tmp_path / name
        sft = stage("sft", folder / "sft", made_model) | {"total_steps": 2}
        ppo = stage("ppo", folder / "ppo", made_model, made_model) | {"total_steps": 3, "faults": faults}
        ppo |= {
            "reward": {"type": "function", "function": "helpers.reward_functions:vowels"},
            "critic": {"path": str(made_model)},
        }
        for config in (sft, ppo):
            config |= {"tracking": {"wandb": False, "samples": 1000}, "checkpoint": {"every_steps": 1}}
            del config["run_dir"]
        policy = {"policy.path": ["ppo.policy", "sft.policy"]}
        return {
            "stage": "pipeline",
            "name": name,
            "run_dir": str(folder / "run"),
            "stages": [{"name": "sft", "config": sft}],
            "repeat": [{"name": "ppo", "config": ppo, "inputs": policy}],
            "rounds": 2,
        }

    killed = pipeline("killed", {"planned": [{"action": "kill", "role": "driver", "step": 2, "phase": "update"}]})
    whole = pipeline("whole", {})
    for config, restarts in ((killed, 2), (whole, 0)):
        folder = Path(config["run_dir"]).parent
        code, said = command(config, folder, *(["--restart", str(restarts)] if restarts else []))
        assert code == 0, said
    one, other = Path(killed["run_dir"]), Path(whole["run_dir"])
    for number in (1, 2):
        run_dir = RunDir(one / f"round-{number}/ppo")
        assert [attempt["status"] for attempt in run_dir.read_run()["attempts"]] == ["lost", "finished"]
        rows = read_metrics(other / f"round-{number}/ppo/metrics.jsonl")
        assert repeatable(read_metrics(run_dir.metrics_path)) == repeatable(rows)
    assert len(RunDir(one / "round-0/sft").read_run()["attempts"]) == 1
    assert digests(one / "export") == digests(other / "export")


def test_changed_settings_are_refused_and_may_be_allowed(
    uninterrupted_run: Callable[[str], RunDir], made_model: Path, tmp_path: Path
) -> None:
    config = stage("sft", tmp_path, made_model) | {"checkpoint": {"every_steps": 2}}
    settings = build(config | {"total_steps": 2, "optimizer": {"lr": 1e-3, "schedule": "constant"}})
    assert run(settings) == 0
    longer = build(config | {"optimizer": {"lr": 2e-3, "schedule": "constant"}})
    with pytest.raises(UserError, match=r"`optimizer.lr` was 0.001 and is 0.002; `total_steps` was 2 and is 4"):
        run(longer)
    with pytest.raises(UserError, match=r"--allow-changed optimizer\.lr"):
        run(longer, allowed=["total_steps"])
    assert run(longer, allowed=["total_steps", "optimizer"]) == 0
    rows = read_metrics(RunDir(longer.run_dir).metrics_path)
    assert [(row["global_step"], row["train/lr"]) for row in rows] == [(1, 1e-3), (2, 1e-3), (3, 2e-3), (4, 2e-3)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "quadriga-test", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_with_a_sentence_and_a_whole_checkpoint(
    ray_cluster: None, small_disk: Path, made_model: Path, tmp_path: Path
) -> None:
    config = stage("sft", tmp_path, made_model) | {"run_dir": str(small_disk / "run")}
    config |= {"checkpoint": {"every_steps": 1, "keep": 3}, "tracking": {"wandb": False}}
    settings = build(config | {"total_steps": 1, "optimizer": {"lr": 1e-3, "schedule": "constant"}})
    assert run(settings) == 0
    run_dir = RunDir(settings.run_dir)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
    with filler.open("rb+") as file:  # room for numbers, not for weights
        file.truncate(filler.stat().st_size - (300 << 10))
    longer = build(config | {"total_steps": 3, "optimizer": {"lr": 1e-3, "schedule": "constant"}})
    with pytest.raises(Fault, match=r"step-2 could not be written: .*newest valid one is step-1"):
        run(longer, allowed=["total_steps"])
    assert run_dir.read_run()["status"] == "failed"
    assert checkpoint.latest_valid(run_dir) == run_dir.checkpoint_dir(1)
    filler.unlink()
    assert run(longer, allowed=["total_steps"]) == 0
    assert run_dir.checkpoint_steps() == [1, 2, 3]


def test_a_run_directory_that_cannot_be_written_is_bad_input(
    small_disk: Path, made_model: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    settings = build(stage("sft", tmp_path, made_model) | {"run_dir": str(small_disk / "run")})
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        run(settings)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(20))
def test_random_faults_change_nothing(
    chaos: Callable[..., RunDir], made_model: Path, made_reward: Path, tmp_path: Path, seed: int
) -> None:
    """Any process, the driver too, at any moment of any step."""
    roles = ["actor", "critic", "reference", "reward", "rollout", "driver"]
    config = chaos_ppo(tmp_path, made_model, made_reward, {"random": {"seed": seed, "rate": 0.3, "roles": roles}})
    code, said = command(config, tmp_path, "--restart", "12")
    assert code == 0, said
    run_dir = RunDir(config["run_dir"])
    faults = injected(run_dir)
    assert faults, "this seed has no fault: give it another"
    assert "A worker died or was killed" not in said  # Ray's own paragraph: who died is said by us
    print(f"seed {seed}:", ", ".join(f"{e['role']} {e['rank']} in step {e['step']}" for e in faults))
    gone([event["pid"] for event in faults])
    killed = sum(event["role"] == "driver" for event in faults)
    assert sum(attempt["status"] == "lost" for attempt in run_dir.read_run()["attempts"]) == killed
    same_history(run_dir, chaos())
