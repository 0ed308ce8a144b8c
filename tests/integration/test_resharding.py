"""A checkpoint of two ranks goes on, on one and on three, as if nothing had changed."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from helpers.plain_ppo import CLIP, LR, batches
from helpers.small_stages import CLUSTER

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.group import ActorGroup, start_groups
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.model.worker import ModelWorkerSpec
from quadriga.actors.settings import ClusterSettings, OptimizerSettings
from quadriga.data.rundir import RunDir
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.orchestrator.training import checkpoint
from quadriga.orchestrator.training.run_state import RunState

pytestmark = pytest.mark.integration

STATE = RunState(2, "ab12cd34", {"coefficient": 0.07}, 345, 14, 6.5, [(2, 0.25)], (2, 0.5))


def group(ranks: int, model: Path, logs: Path) -> ActorGroup:
    """An actor on so many ZeRO-3 ranks, more than there are cores if need be."""
    cluster, optimizer = ClusterSettings.model_validate(CLUSTER), OptimizerSettings(lr=LR, weight_decay=0.1)
    spec = ModelSpec(str(model), "logprobs")
    specs = [ModelWorkerSpec("actor", rank, ranks, spec, cluster, "cpu", 1, optimizer) for rank in range(ranks)]
    made = ActorGroup(specs, str(logs), [{"num_cpus": 0}] * ranks)
    start_groups([made])
    return made


def step(actor: ActorGroup, elements: list[Element]) -> tuple[float, float]:
    """Loss and gradient norm of one optimizer step."""
    loss = PolicyClip(CLIP)
    tokens = sum(float(e.tokens["weights"][0].sum()) for e in elements)
    wanted = [Element(e.sequences, {name: e.tokens[name] for name in loss.fields}) for e in elements]
    update = actor.update([LossPart(loss, wanted, tokens)], LR).result()
    return update.stats["loss"] / tokens, update.grad_norm


def test_two_ranks_go_on_as_one_and_as_three(ray_cluster: None, made_model: Path, tmp_path: Path) -> None:
    """Two more steps: the second one's loss shows that the moments and their step count came along too."""
    run, sizes = RunDir.create(tmp_path / "run"), batches()
    two = group(2, made_model, run.logs_dir)
    for elements in sizes[:2]:
        step(two, elements)
    checkpoint.save(run, STATE, {"actor": two}, {}, None)
    expected = [step(two, sizes[2]), step(two, sizes[1])]
    two.close()
    folder: Any = checkpoint.latest_valid(run)
    for ranks in (1, 3):
        other = group(ranks, made_model, run.logs_dir)
        state = checkpoint.restore(folder, {"actor": other})
        assert {f.name for f in fields(state) if getattr(state, f.name) != getattr(STATE, f.name)} == set()
        for elements, (loss, norm) in zip((sizes[2], sizes[1]), expected, strict=True):
            assert step(other, elements) == (pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-5))
        other.close()
    checkpoint.verify(folder)
