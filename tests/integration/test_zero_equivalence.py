"""The same three PPO steps on 2 ZeRO-3 ranks, on 1, at stage 0, and in plain torch: one result, whatever the cut."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_ppo import CLIP, LR, NORM, batches, plain_torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from quadriga.actors.group import ActorGroup, Element
from quadriga.actors.models import ModelSpec
from quadriga.actors.settings import ClusterSettings, HostSettings, OptimizerSettings
from quadriga.actors.weights import named_weights
from quadriga.data.packing import plan
from quadriga.kernels.losses import PolicyClip, ValueClip
from quadriga.orchestrator.cluster import Hosting, processes

pytestmark = pytest.mark.integration


def three_steps(group: ActorGroup, budget: int, folder: Path) -> tuple[list[tuple[float, float]], list[int], Path]:
    """Run the batches on a group with this token budget; returns (losses and norms, micro-batches a step, export)."""
    group.specs = [replace(s, cluster=s.cluster.model_copy(update={"train_tokens": budget})) for s in group.specs]
    loss = PolicyClip(CLIP) if group.role == "actor" else ValueClip(CLIP)
    history, cuts = [], []
    for elements in batches():
        tokens = sum(float(e.tokens["mask"][0].sum()) for e in elements)
        wanted = [Element(e.sequences, {n: e.tokens[n] for n in loss.fields}) for e in elements]
        update = group.update(wanted, loss, tokens, LR).result()
        history.append((update.stats["loss"] / tokens, update.grad_norm))
        cuts.append(update.micro_batches)
    group.export(str(folder), "policy" if group.role == "actor" else "critic").result()
    return history, cuts, folder


def budget_for(parts: int, ranks: int) -> int:
    """The largest token budget that cuts the largest batch into at least this many micro-batches over all ranks."""
    lengths = [element.length for element in batches()[-1]]
    return next(b for b in range(1000, 0, -1) if sum(len(m) for m in plan(lengths, ranks, b).ranks) >= parts)


def load(folder: Path, role: str) -> dict[str, torch.Tensor]:
    """An exported model's weights."""
    auto = AutoModelForCausalLM if role == "actor" else AutoModelForTokenClassification
    return {name: tensor.detach() for name, tensor in named_weights(auto.from_pretrained(folder, dtype=torch.float32))}


@pytest.mark.parametrize(("ranks", "stage"), [(2, 3), (1, 3), (1, 0)])
def test_three_steps_are_the_same_everywhere(
    ray_cluster: None, made_model: Path, made_reward: Path, tmp_path: Path, ranks: int, stage: int
) -> None:
    """Losses and gradient norms within 1e-5 relative, weights within 1e-5 where they moved at least 1e-3."""
    host = HostSettings(ranks=ranks, zero_stage=stage)
    cluster = ClusterSettings(actor=host, critic=host, persistence_threshold=0)
    optimizer = OptimizerSettings(lr=LR, max_grad_norm=NORM)
    start = {"actor": made_model, "critic": made_reward}
    hostings = [
        Hosting("actor", ModelSpec(str(made_model), "logprobs"), optimizer),
        Hosting("critic", ModelSpec(str(made_reward), "scalar", bias=0.5), optimizer),
    ]
    expected = {role: plain_torch(path, role) for role, path in start.items()}
    with processes(cluster, hostings, None, str(tmp_path / "logs")) as running:
        for role, group in running.groups.items():
            if stage == 3:
                assert group.description["partitioned_tensors"] == group.description["tensors"]
            group.save(str(tmp_path / role)).result()
            cuts = []
            for number, budget in enumerate(budget_for(parts, ranks) for parts in (1, 3, 7)):
                group.load(str(tmp_path / role), 0).result()
                history, cut, folder = three_steps(group, budget, tmp_path / f"{role}-{number}")
                cuts.append(cut)
                reference, weights = expected[role]
                np.testing.assert_allclose(history, reference, rtol=1e-5)
                before, after = load(start[role], role), load(folder, role)
                assert set(after) == set(weights)
                compared = 0
                for name, tensor in weights.items():
                    if name == "score.bias":
                        before[name] = torch.full((1,), 0.5)
                    moved = (tensor - before[name]).abs() >= 1e-3
                    compared += int(moved.sum())
                    assert (after[name] - tensor)[moved].abs().max() <= 1e-5 if moved.any() else True, name
                assert compared > 10_000
            # The batch of one sample leaves a second rank with fillers only.
            assert cuts[0] == [1, 1, 1] and ranks * cuts[1][-1] >= 3 and ranks * cuts[2][-1] >= 7
