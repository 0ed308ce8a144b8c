"""Model workers on GPUs, started as a run starts them: each in a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.plain_ppo import CLIP, LR, NORM, batches, plain_torch
from helpers.planned_memory import planned_and_measured, save_large
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.group import ActorGroup
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import ClusterSettings, ModelWorkerSettings, OptimizerSettings
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.launch.plan.memory import CUDA_CONTEXT
from quadriga.orchestrator.cluster.processes import ModelUse, processes

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs a CUDA device")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")


@contextmanager
def actor(model: Path, logs: Path, dtype: str, ranks: int, stage: int, offload: str = "none") -> Iterator[ActorGroup]:
    """An actor on the GPU, with at most three micro-batches a step."""
    settings = ModelWorkerSettings(ranks=ranks, zero_stage=stage, offload=offload)
    cluster = ClusterSettings(device="cuda", dtype=dtype, actor=settings, train_tokens=64)
    use = ModelUse("actor", ModelSpec(str(model), "logprobs"), OptimizerSettings(lr=LR, max_grad_norm=NORM))
    with processes(cluster, [use], None, str(logs)) as running:
        yield running.groups["actor"]


def three_steps(group: ActorGroup) -> list[tuple[float, float]]:
    """Run the reference steps; return (loss, gradient norm) of each."""
    loss, history = PolicyClip(CLIP), []
    for elements in batches():
        tokens = sum(float(e.tokens["weights"][0].sum()) for e in elements)
        wanted = [Element(e.sequences, {n: e.tokens[n] for n in loss.fields}) for e in elements]
        update = group.update([LossPart(loss, wanted, tokens)], LR).result()
        history.append((update.stats["loss"] / tokens, update.grad_norm))
    return history


@pytest.mark.parametrize(
    ("ranks", "stage", "offload"),
    [
        (1, 3, "none"),
        (1, 0, "none"),
        (1, 3, "optimizer"),
        pytest.param(2, 3, "none", marks=two_gpus),
        pytest.param(2, 2, "none", marks=two_gpus),
    ],
)
def test_three_steps_equal_plain_torch_on_a_cpu(
    ray_cluster: None, made_model: Path, tmp_path: Path, ranks: int, stage: int, offload: str
) -> None:
    """float32: losses and norms within 1e-4 relative; weights within 1e-4 where they moved at least 1e-3."""
    expected = plain_torch(made_model, "actor")
    with actor(made_model, tmp_path / "logs", "float32", ranks, stage, offload) as group:
        np.testing.assert_allclose(three_steps(group), expected.history, rtol=1e-4)
        group.export(str(tmp_path / "export"), "policy").result()
        assert group.memory > 0
    exported, start = (load_file(folder / "model.safetensors") for folder in (tmp_path / "export", made_model))
    compared = 0
    for name, tensor in exported.items():
        noise = [step[name].abs() <= 1e-4 * step[name].abs().max() for step in expected.gradients]
        moved = ((tensor - start[name]).abs() >= 1e-3) & ~torch.stack(noise).any(0)
        compared += int(moved.sum())
        assert not moved.any() or (tensor - expected.weights[name])[moved].abs().max() <= 1e-4, name
    assert compared > 10_000


def test_bfloat16_keeps_float32_masters(ray_cluster: None, made_model: Path, tmp_path: Path) -> None:
    """Losses are near float32's, and steps that bfloat16 cannot hold still add up."""
    expected = plain_torch(made_model, "actor").history
    with actor(made_model, tmp_path / "logs", "bfloat16", 1, 3) as group:
        np.testing.assert_allclose([x for x, _ in three_steps(group)], [x for x, _ in expected], atol=0.05)
        group.export(str(tmp_path / "before"), "policy").result()
        loss, element = PolicyClip(CLIP), batches()[1][0]
        part = LossPart(loss, [Element(element.sequences, {n: element.tokens[n] for n in loss.fields})], 10.0)
        for _ in range(40):  # of 3e-5 each: a weight of 0.2 has steps of 1e-3 in bfloat16
            group.update([part], 3e-5).result()
        group.export(str(tmp_path / "after"), "policy").result()
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_forward_passes_equal_a_plain_model_on_a_cpu(ray_cluster: None, made_model: Path, tmp_path: Path) -> None:
    """Packed log-probs in float32, within 1e-4."""
    sequences = [[1, 5, 9, 20], [1, 7, 7, 8, 9, 10, 11], [1, 30]]
    with actor(made_model, tmp_path / "logs", "float32", 1, 3) as group:
        found = group.forward_logprobs(sequences, 1.0, "forward").result()
    model = LlamaForCausalLM.from_pretrained(made_model, dtype=torch.float32).eval()
    for sequence, (logprobs, _) in zip(sequences, found, strict=True):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            plain = model(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        assert logprobs[0] == 0 and np.abs(logprobs[1:] - plain.numpy()).max() < 1e-4


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 110M parameters."""
    return save_large(tmp_path_factory.mktemp("large"))


@pytest.mark.parametrize("role", ["reference", "actor", "critic", "reward"])
def test_memory_is_as_planned(ray_cluster: None, large: Path, role: str, tmp_path: Path) -> None:
    """A plan is never below CUDA's allocations, nor far above: its allowance for the context is not one of them."""
    cluster = {"device": "cuda", "train_tokens": 512, "forward_tokens": 512}
    planned, measured = planned_and_measured(role, large, cluster, tmp_path)
    planned -= CUDA_CONTEXT
    print(f"{role}: planned {planned / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert measured < planned < 1.5 * measured
