"""Every run-time check of the trainer, broken on purpose in one set of live processes: the step stops, and says why."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from helpers import broken_workers
from helpers.small_stages import stage

from quadriga.data.errors import Fault
from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.cluster.health import State
from quadriga.orchestrator.cluster.processes import processes
from quadriga.orchestrator.faults.injector import FaultInjector
from quadriga.orchestrator.faults.watchdog import Watchdog
from quadriga.orchestrator.stages.ppo.trainer import Ppo
from quadriga.orchestrator.tracking.console import StageProgress

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def live(
    ray_cluster: None, made_model: Path, made_reward: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Ppo, Path]]:
    """A PPO stage whose processes run, and the folder of the weights and optimizer states they started with."""
    ray.cloudpickle.register_pickle_by_value(broken_workers)  # the actors' processes cannot import it
    folder = tmp_path_factory.mktemp("live")
    settings = build(stage("ppo", folder, made_model, made_reward))
    ppo = Ppo(settings, RunDir.create(settings.run_dir))
    ppo.load_inputs()
    ppo.progress = StageProgress("ppo", "broken")
    hosts = dict.fromkeys(("actor", "critic", "reference"), broken_workers.BrokenWorker)
    with processes(settings.cluster, ppo.models(), ppo.engine(), str(ppo.run.logs_dir), hosts) as ppo.running:
        ppo.injector = FaultInjector(settings.faults, ppo.run, ppo.running)
        ppo.watchdog = Watchdog(1e9, lambda: None, lambda reason: None)
        for role, group in ppo.trained_groups().items():
            group.save(str(folder / role)).result()
        ppo.setup_workers()
        yield ppo, folder
        ppo.teardown()


@pytest.fixture
def ppo(live: tuple[Ppo, Path]) -> Iterator[Ppo]:
    """The stage before its first step, all parts in order."""
    ppo, folder = live
    for role, group in ppo.trained_groups().items():
        group.load(str(folder / role), 0).result()
    ppo.state.step = 0
    ppo.sync_after_restore()
    yield ppo
    for role in ("actor", "critic", "reference"):
        break_(ppo, role, "")


def break_(ppo: Ppo, role: str, fault: str) -> None:
    """Have a role go wrong from now on."""
    ray.get(ppo.group(role).ranks[0].break_.remote(fault))


def test_nothing_stops_a_step_in_order(ppo: Ppo) -> None:
    metrics, _ = ppo.step()
    assert metrics["rollout/logprob_diff_max"] < 1e-4


@pytest.mark.parametrize(
    ("role", "fault", "sentence", "phase"),
    [
        ("actor", "swapped", "The rollout engine's log-probs differ from the trainer's by up to", "old_logprobs"),
        ("reference", "other log-probs", "KL between policy and reference is .* before the first update", "reference"),
        ("actor", "other temperature", "On the first on-policy minibatch a probability ratio is off 1 by", "update"),
        ("actor", "stuck tensor", r"1 trainable tensors of the actor had not moved: model\.norm\.weight", "update"),
        ("actor", "nan gradient", r"gradient norm of the actor is not finite in optimizer step 1 \(while", "update"),
        ("critic", "stuck tensor", r"1 trainable tensors of the critic had not moved: model\.norm\.weight", "update"),
    ],
)
def test_a_step_that_goes_wrong_stops(ppo: Ppo, role: str, fault: str, sentence: str, phase: str) -> None:
    break_(ppo, role, fault)
    if fault == "swapped":
        ppo.pool.sync(0)
    with pytest.raises(Fault, match=sentence) as stopped:
        ppo.step()
    assert stopped.value.phase == phase


def test_worker_serves_no_version_but_its_own(ppo: Ppo) -> None:
    ppo.pool.version = 7
    for worker in ppo.pool.fleet.workers:  # whatever the pool believes, the worker knows what it holds
        worker.health.version = 7
    with pytest.raises(Fault, match="asked for answers of policy version 7 but holds version 0"):
        ppo.source.samples(0)


def test_answers_of_another_version_stop_the_step(ppo: Ppo) -> None:
    ppo.pool.sync(3)  # the pool and its workers agree on 3, the trainer is at step 0
    with pytest.raises(Fault, match="was drawn by policy version 3, not 0"):
        ppo.step()


def test_sync_without_the_tied_head_stops(ppo: Ppo) -> None:
    """vLLM itself takes it without a word and keeps the old head. Comes last: the worker is ended for it."""
    break_(ppo, "actor", "no lm_head")
    with pytest.raises(Fault, match=r"sync.*the sync left weights out: lm_head \(0 of 19,200 elements\)"):
        ppo.pool.sync(1)
    assert [worker.health.state for worker in ppo.pool.fleet.workers] == [State.DEAD]
