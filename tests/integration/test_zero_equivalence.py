"""The same three PPO steps on 2 ZeRO-3 ranks, on 1, at stage 0, and in plain torch: one result, whatever the cut."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from helpers import recording_workers
from helpers.plain_ppo import CLIP, LR, NORM, PlainRun, batches, plain_torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.group import ActorGroup
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import ClusterSettings, ModelWorkerSettings, OptimizerSettings
from quadriga.actors.weights.source import named_weights
from quadriga.data.errors import Fault
from quadriga.data.tokens.packing import plan
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.kernels.losses.value import ValueClip
from quadriga.orchestrator.cluster.processes import ModelUse, processes

pytestmark = pytest.mark.integration


def three_steps(group: ActorGroup, budget: int, folder: Path) -> tuple[list[tuple[float, float]], list[int], Path]:
    """Run the batches on a group with this token budget; returns (losses and norms, micro-batches per step, export).

    The gradients of each step are in the export's folder too.
    """
    ray.get([rank.record.remote(str(folder / "gradients")) for rank in group.ranks])
    group.specs = [replace(s, cluster=s.cluster.model_copy(update={"train_tokens": budget})) for s in group.specs]
    loss = PolicyClip(CLIP) if group.role == "actor" else ValueClip(CLIP)
    history, cuts = [], []
    for elements in batches():
        tokens = sum(float(e.tokens["weights"][0].sum()) for e in elements)
        wanted = [Element(e.sequences, {n: e.tokens[n] for n in loss.fields}) for e in elements]
        update = group.update([LossPart(loss, wanted, tokens)], LR).result()
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


def compare_gradients(expected: PlainRun, folder: Path) -> None:
    """Each element agrees to 1e-5 of its tensor's largest, in the first step.

    Later steps start from weights that AdamW moved by rounding noise where a gradient was nothing else.
    """
    gradients = load_file(folder / "gradients/step-0.safetensors")
    assert set(gradients) == set(expected.gradients[0])
    for name, gradient in expected.gradients[0].items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def compare_weights(expected: PlainRun, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Weights agree to 2e-6 wherever they moved and their gradients were more than rounding noise.

    AdamW's first steps divide a gradient by its own magnitude: one that is a rounding error of its tensor's largest
    moves its weight by about the learning rate in a direction that depends on the instruction set.
    """
    assert set(after) == set(expected.weights)
    compared = 0
    for name, weight in expected.weights.items():
        moved = (weight - before[name]).abs() >= 1e-3
        source = "model.embed_tokens.weight" if name == "lm_head.weight" else name
        for step in expected.gradients:
            moved &= step[source].abs() > 1e-4 * step[source].abs().max()
        compared += int(moved.sum())
        if moved.any():
            assert (after[name] - weight)[moved].abs().max() <= 2e-6, name
    assert compared > 10_000


@pytest.mark.parametrize(("ranks", "stage"), [(2, 3), (1, 3), (1, 0)])
def test_three_steps_are_the_same_everywhere(
    ray_cluster: None, made_model: Path, made_reward: Path, tmp_path: Path, ranks: int, stage: int
) -> None:
    """Losses, gradients and their norms within 1e-5 relative, weights within 2e-6."""
    host = ModelWorkerSettings(ranks=ranks, zero_stage=stage)
    cluster = ClusterSettings(actor=host, critic=host, persistence_threshold=0)
    optimizer = OptimizerSettings(lr=LR, max_grad_norm=NORM)
    start = {"actor": made_model, "critic": made_reward}
    uses = [
        ModelUse("actor", ModelSpec(str(made_model), "logprobs"), optimizer),
        ModelUse("critic", ModelSpec(str(made_reward), "scalar", bias=0.5), optimizer),
    ]
    expected = {role: plain_torch(path, role) for role, path in start.items()}
    ray.cloudpickle.register_pickle_by_value(recording_workers)  # the actors' processes cannot import it
    recording = dict.fromkeys(start, recording_workers.RecordingWorker)
    with processes(cluster, uses, None, str(tmp_path / "logs"), recording) as running:
        for role, group in running.groups.items():
            if stage == 3:
                assert group.description["partitioned_tensors"] == group.description["tensors"]
            group.save(str(tmp_path / role)).result()
            cuts = []
            for number, budget in enumerate(budget_for(parts, ranks) for parts in (1, 3, 7)):
                group.load(str(tmp_path / role), 0).result()
                history, cut, folder = three_steps(group, budget, tmp_path / f"{role}-{number}")
                cuts.append(cut)
                np.testing.assert_allclose(history, expected[role].history, rtol=1e-5)
                compare_gradients(expected[role], folder)
                before = load(start[role], role)
                if role == "critic":
                    before["score.bias"] = torch.full((1,), 0.5)
                compare_weights(expected[role], before, load(folder, role))
            # The batch of one sample leaves a second rank with fillers only.
            assert cuts[0] == [1, 1, 1] and ranks * cuts[1][-1] >= 3 and ranks * cuts[2][-1] >= 7


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "float32")])
def test_gradient_that_is_not_finite_changes_nothing(
    ray_cluster: None, made_model: Path, tmp_path: Path, stage: int, dtype: str
) -> None:
    """One advantage is inf in the second step: the step stops, and the weights stay those of the first, to the byte."""
    cluster = ClusterSettings(actor=ModelWorkerSettings(zero_stage=stage), persistence_threshold=0, dtype=dtype)
    spec = ModelSpec(str(made_model), "logprobs")
    uses = [ModelUse("actor", spec, OptimizerSettings(lr=LR, max_grad_norm=NORM))]
    loss = PolicyClip(CLIP)
    with processes(cluster, uses, None, str(tmp_path / "logs")) as running:
        group = running.groups["actor"]
        _, batch, spoilt = (
            [Element(e.sequences, {name: e.tokens[name] for name in loss.fields}) for e in elements]
            for elements in batches()
        )
        group.update([LossPart(loss, batch, 1.0)], LR).result()
        group.export(str(tmp_path / "before"), "policy").result()
        spoilt[0].tokens["advantages"] = [np.full_like(spoilt[0].tokens["weights"][0], np.inf)]
        with pytest.raises(Fault, match=r"actor is not finite in optimizer step 2 \(loss"):
            group.update([LossPart(loss, spoilt, 1.0)], LR).result()
        group.export(str(tmp_path / "after"), "policy").result()
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    start = load_file(made_model / "model.safetensors")
    assert any(not torch.equal(before[name].float(), start[name]) for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
