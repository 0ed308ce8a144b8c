"""The weight transfer of docs/extending.md, from a file outside the tree, in a real engine and a real model worker."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from helpers.small_stages import CLUSTER

from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import ClusterSettings, SamplingSettings
from quadriga.data.errors import Lost
from quadriga.data.records import Prompt
from quadriga.orchestrator.cluster.processes import ModelUse, Processes, RolloutPlan, processes
from quadriga.orchestrator.rollout.pool import GroupWeights, RolloutPool

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs/extending.md"
RECORDING = """
import os
from pathlib import Path
from my_transfer import FileReceiver, Files, FileSender

def note(settings, text):
    with open(f"{settings.folder}/notes.txt", "a") as file:
        file.write(f"{text} {os.getpid()}\\n")

class Recorded(Files):
    sender = "recording_transfer:RecordingSender"
    receiver = "recording_transfer:RecordingReceiver"

class RecordingSender(FileSender):
    def attach(self, workers):
        note(self.settings, "attach")

class RecordingReceiver(FileReceiver):
    def receive(self, message):
        note(self.settings, "receive")
        dropped = Path(self.settings.folder, "dropped")
        names = dropped.read_text().split() if dropped.exists() else []
        return [(name, tensor) for name, tensor in super().receive(message) if name not in names]
"""


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=lambda n: f"tensor_parallel={n}"
)
def live(
    request: pytest.FixtureRequest, ray_cluster: None, made_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Processes, RolloutPool, Path]]:
    """An actor, an engine that got its weights by the page's transfer, and the folder of the transfer's files."""
    folder = tmp_path_factory.mktemp("transfer")
    (code,) = re.findall(r"```python\n# my_transfer\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "my_transfer.py").write_text(code)
    (folder / "recording_transfer.py").write_text(RECORDING)
    transfer = {"type": "recording_transfer:Recorded", "folder": str(folder)}
    rollout = CLUSTER["rollout"] | {"tensor_parallel": request.param}
    uses, plan = [ModelUse("actor", ModelSpec(str(made_model), "logprobs"))], RolloutPlan(str(made_model), 64, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the driver and its processes find the files
        settings = ClusterSettings.model_validate(
            CLUSTER | {"rollout": rollout, "weight_transfer": transfer, "bucket_bytes": 1 << 17}
        )
        with processes(settings, uses, plan, str(folder / "logs")) as running:
            pool = RolloutPool(running.fleet, (), str, GroupWeights(running))
            pool.sync(0)
            pool.sync(1)
            yield running, pool, folder


def pids(folder: Path, what: str) -> list[int]:
    notes = [line.split() for line in (folder / "notes.txt").read_text().splitlines()]
    return [int(pid) for noted, pid in notes if noted == what]


def test_the_engine_holds_what_the_trainer_holds(live: tuple[Processes, RolloutPool, Path]) -> None:
    running, pool, _ = live
    prompts = [Prompt(str(n), [], [1, 20 + n, 30 + n]) for n in range(6)]
    samples = pool.generate(prompts, 1, SamplingSettings(max_tokens=16), 0, 0)
    assert {version for sample in samples for version in sample.versions} == {1}
    passes = running.groups["actor"].forward_logprobs([s.token_ids for s in samples], 1.0, "test").result()
    for sample, (logprobs, _) in zip(samples, passes, strict=True):
        np.testing.assert_allclose(sample.rollout_logprobs, logprobs[len(sample.prompt.token_ids) :], atol=1e-4)


def test_each_side_runs_in_its_own_processes(live: tuple[Processes, RolloutPool, Path]) -> None:
    running, pool, folder = live
    (worker,) = pool.fleet.workers
    tensor_parallel = running.settings.rollout.tensor_parallel
    (actor,) = running.groups["actor"].ranks
    engine_pid, actor_pid = (ray.get(handle.heartbeat.remote())[1] for handle in (worker.handle, actor))
    receivers = set(pids(folder, "receive"))
    assert len(receivers) == tensor_parallel
    assert (receivers == {engine_pid}) == (tensor_parallel == 1)
    assert actor_pid not in receivers
    assert os.getpid() not in receivers
    assert pids(folder, "attach") == [actor_pid]


def test_every_bucket_reaches_every_process(live: tuple[Processes, RolloutPool, Path]) -> None:
    running, pool, folder = live
    received = pids(folder, "receive")
    assert len(received) >= 4 * running.settings.rollout.tensor_parallel  # two syncs of several buckets
    assert len({received.count(pid) for pid in received}) == 1
    assert isinstance(pool.weights, GroupWeights)
    assert pool.weights.bytes > 0


def test_a_tensor_that_is_left_out_is_noticed(live: tuple[Processes, RolloutPool, Path]) -> None:
    """Comes last: the worker is of no use after it."""
    _, pool, folder = live
    (folder / "dropped").write_text("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        Lost, match=r"the sync left weights out: model.layers.1.mlp.gate_up_proj \([\d,]+ of [\d,]+ elements\)"
    ):
        pool.sync(2)
