"""Every loss of the policy over two ranks and many micro-batches: losses and gradients are those of one rank."""

from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from helpers import recording_workers
from helpers.plain_ppo import batches
from safetensors.torch import load_file

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.group import ActorGroup
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import ClusterSettings, ModelWorkerSettings, OptimizerSettings
from quadriga.kernels.losses.base import Loss
from quadriga.kernels.losses.policy import Cispo, PolicyClip
from quadriga.kernels.losses.regularisers import EntropyBonus, ReferenceKL
from quadriga.orchestrator.algorithms.aggregation import Aggregation, token_weights
from quadriga.orchestrator.cluster.processes import ModelUse, processes

pytestmark = pytest.mark.integration
LIMIT = 20
"""Longest answer, for the aggregation `constant`."""

CASES: dict[str, tuple[Aggregation, dict[str, tuple[Loss, float]]]] = {
    "token": ("token", {"": (PolicyClip(), 1.0)}),
    "sequence": ("sequence", {"": (PolicyClip(0.2, clip_high=0.3, dual_clip=3.0), 1.0)}),
    "constant": ("constant", {"": (PolicyClip(), 1.0)}),
    "gspo": ("sequence", {"": (PolicyClip(0.2, ratio="sequence"), 1.0)}),
    "gspo by token": ("token", {"": (PolicyClip(0.2, ratio="sequence"), 1.0)}),
    "cispo": ("token", {"": (Cispo(), 1.0)}),
    "parts": ("token", {"": (PolicyClip(), 1.0), "kl": (ReferenceKL("k3"), 0.1), "entropy": (EntropyBonus(), 0.05)}),
    "kl k2 by sequence": ("sequence", {"": (PolicyClip(), 1.0), "kl": (ReferenceKL("k2"), 0.1)}),
}


def parts_of(aggregation: Aggregation, losses: dict[str, tuple[Loss, float]]) -> list[LossPart]:
    """The parts of one optimizer step over eight ragged answers, with old log-probs near the model's."""
    rng, elements = np.random.default_rng(5), batches()[-1]
    masks = [element.tokens["weights"][0] for element in elements]
    weights, units = token_weights(masks, aggregation, LIMIT)
    made = []
    for element, weight in zip(elements, weights, strict=True):
        columns = {name: element.tokens[name][0] for name in ("old_logprobs", "advantages")}
        columns |= {"ref_logprobs": columns["old_logprobs"] + rng.normal(0, 0.3, len(weight)).astype(np.float32)}
        made.append(Element(element.sequences, {name: [x] for name, x in (columns | {"weights": weight}).items()}))
    return [LossPart(loss, made, sum(units), factor, name) for name, (loss, factor) in losses.items()]


def measured(group: ActorGroup, folder: Path) -> dict[str, tuple[dict[str, float], dict[str, torch.Tensor]]]:
    """Statistics and gradients, before the optimizer, of every case. A learning rate of 0 leaves the weights alone."""
    ray.get([rank.record.remote(str(folder)) for rank in group.ranks])
    found = {}
    for number, (name, case) in enumerate(CASES.items()):
        update = group.update(parts_of(*case), 0.0).result()
        found[name] = update.stats, load_file(folder / f"step-{number}.safetensors")
    return found


def nothing_to_learn_is_no_fault(group: ActorGroup) -> None:
    """A first step whose advantages are all 0 moves nothing, and the next one is checked to move every tensor."""
    (part,) = parts_of(*CASES["token"])
    for element in part.elements:
        element.tokens["advantages"] = [np.zeros_like(element.tokens["advantages"][0])]
    assert group.update([part], 1e-3).result().grad_norm == 0
    assert group.update(parts_of(*CASES["token"]), 1e-3).result().grad_norm > 0


def test_two_ranks_are_one(ray_cluster: None, made_model: Path, tmp_path: Path) -> None:
    """Statistics within 1e-5, gradients within 1e-5 of their norm (L2, over all tensors)."""
    ray.cloudpickle.register_pickle_by_value(recording_workers)  # the actors' processes cannot import it
    uses = [ModelUse("actor", ModelSpec(str(made_model), "logprobs"), OptimizerSettings())]
    results = []
    for ranks, budget in ((1, 8192), (2, 40)):
        cluster = ClusterSettings(actor=ModelWorkerSettings(ranks=ranks), train_tokens=budget)
        with processes(
            cluster, uses, None, str(tmp_path / "logs"), {"actor": recording_workers.RecordingWorker}
        ) as running:
            results.append(measured(running.groups["actor"], tmp_path / str(ranks)))
            nothing_to_learn_is_no_fault(running.groups["actor"])
    one, two = results
    for name in CASES:
        (stats, gradients), (other_stats, other_gradients) = one[name], two[name]
        for key, value in stats.items():
            assert other_stats[key] == pytest.approx(value, rel=1e-5, abs=1e-5), (name, key)
        difference = sum(float((other_gradients[k] - g).double().square().sum()) for k, g in gradients.items()) ** 0.5
        norm = sum(float(g.double().square().sum()) for g in gradients.values()) ** 0.5
        assert norm > 0, name
        assert difference <= 1e-5 * norm, (name, difference / norm)
    assert {"loss", "kl_loss", "entropy_loss"} <= one["parts"][0].keys()
