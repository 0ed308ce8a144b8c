"""Waiting for real processes that die, stop, fail or are late: who is named, and how soon."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quadriga.actors.runtime.process import remote_process
from quadriga.actors.runtime.remote_calls import gather, request_heartbeat, wait_all
from quadriga.data.errors import Fault, Lost, ProcessDied, UserError

pytestmark = pytest.mark.integration


class Patient:
    """Does what it is asked to."""

    def nap(self, seconds: float) -> str:
        time.sleep(seconds)
        return "rested"

    def fail(self, error: Exception, after: float = 0.0) -> None:
        time.sleep(after)
        raise error


@pytest.fixture(scope="module")
def start(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """Starts patients."""
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["Patient"]))
    logs, started = tmp_path_factory.mktemp("logs"), list[Any]()

    def one() -> Any:
        name = f"patient-{len(started)}"
        started.append(remote_process(Patient, str(logs / f"{name}.log"), name).options(num_cpus=0).remote())
        return started[-1]

    yield one
    for actor in started:
        ray.kill(actor)


def test_a_death_explains_the_failure_of_its_peers(start: Callable[[], Any]) -> None:
    """A rank whose peer was killed fails before the death is known; the death is what is told."""
    dying, failing = start(), start()
    pid = wait_all({"a": request_heartbeat(dying), "b": request_heartbeat(failing)}, "start", 60)["a"][1]
    refs = {"actor 1": failing.fail.remote(RuntimeError("connection closed by peer")), "actor 0": dying.nap.remote(60)}
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProcessDied, match=r"update: actor 0 died: .*") as lost:
        wait_all(refs, "update", 60)
    assert (lost.value.phase, lost.value.process) == ("update", "actor 0")
    assert "Some common causes" not in str(lost.value)


def test_a_stopped_process_is_named_by_its_missing_heartbeat(start: Callable[[], Any]) -> None:
    """Long before the limit, and though the one that waits for it cannot answer either."""
    stopped, waiting = start(), start()
    pid = wait_all({"a": request_heartbeat(stopped), "b": request_heartbeat(waiting)}, "start", 60)["a"][1]
    refs = {"actor 0": waiting.nap.remote(60), "actor 1": stopped.nap.remote(0.1)}
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Lost, match="update: actor 1 shows no sign of life for 3 s"):
        wait_all(refs, "update", 300, {"actor 0": waiting, "actor 1": stopped}, heartbeat=3)
    assert 3 <= time.monotonic() - began < 3 + 10
    os.kill(pid, signal.SIGCONT)


def test_a_busy_process_is_not_a_silent_one(start: Callable[[], Any]) -> None:
    """It answers heartbeats while it works; one that is still starting would not."""
    actor = start()
    wait_all({"actor 0": request_heartbeat(actor)}, "start", 60)
    refs = {"actor 0": actor.nap.remote(5)}
    assert wait_all(refs, "update", 60, {"actor 0": actor}, heartbeat=2) == {"actor 0": "rested"}


def test_the_limit_names_who_is_late(start: Callable[[], Any]) -> None:
    one, other = start(), start()
    wait_all({"a": request_heartbeat(one), "b": request_heartbeat(other)}, "start", 60)
    with pytest.raises(Lost, match="save: no answer from critic 0 within 2 s") as lost:
        wait_all({"actor 0": one.nap.remote(0), "critic 0": other.nap.remote(30)}, "save", 2)
    assert lost.value.process == "critic 0"


def test_errors_of_ours_stay_what_they_are_and_others_become_losses(start: Callable[[], Any]) -> None:
    actor = start()
    for error in (Fault("a check failed", phase="update"), UserError("mend it")):
        with pytest.raises(type(error), match=str(error)):
            wait_all({"actor 0": actor.fail.remote(error)}, "update", 60)
    done, lost = gather({"a": actor.fail.remote(ValueError("odd")), "b": actor.nap.remote(0)}, "update", 60)
    assert done == {"b": "rested"} and str(lost["a"]) == "update: a failed: ValueError: odd"


def test_stacks_go_to_the_log_of_a_process(start: Callable[[], Any], tmp_path: Path) -> None:
    from quadriga.orchestrator.faults.watchdog import dump_stacks

    actor = start()
    node, pid = wait_all({"a": request_heartbeat(actor)}, "start", 60)["a"]
    ref = actor.nap.remote(3)
    time.sleep(0.5)
    dump_stacks(tmp_path / "driver.txt", [(node, pid), (node, 2**22 - 1), ("ab" * 28, 7)])
    log = Path(os.readlink(f"/proc/{pid}/fd/2"))
    wait_all({"a": ref}, "nap", 60)
    assert "in nap" in log.read_text() and "test_stacks_go" in (tmp_path / "driver.txt").read_text()
