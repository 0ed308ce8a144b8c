"""The same three PPO steps on 2 ZeRO-3 ranks, on 1, at stage 0, and in plain torch: one result, whatever the cut."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from quadriga.actors.group import ActorGroup, Element
from quadriga.actors.models import ModelSpec
from quadriga.actors.settings import ClusterSettings, HostSettings, OptimizerSettings
from quadriga.actors.weights import named_weights
from quadriga.data.packing import plan
from quadriga.kernels.losses import PolicyClip, ValueClip
from quadriga.orchestrator.cluster import Hosting, processes

pytestmark = pytest.mark.integration
SIZES = (1, 5, 8)
"""Samples of the three steps."""
LR, CLIP, NORM = 1e-3, 0.2, 1.0


def batches() -> list[list[Element]]:
    """Three batches of answers with made-up old log-probs, advantages, values and returns."""
    rng = np.random.default_rng(3)
    result = []
    for size in SIZES:
        elements = []
        for _ in range(size):
            prompt, answer = int(rng.integers(2, 6)), int(rng.integers(3, 20))
            ids = [1, *rng.integers(6, 300, prompt + answer - 1).tolist()]
            mask = np.r_[np.zeros(prompt), np.ones(answer)].astype(np.float32)
            columns = {
                "old_logprobs": rng.normal(-6, 0.5, prompt + answer),
                "advantages": rng.normal(size=prompt + answer),
                "old_values": rng.normal(size=prompt + answer) * 0.1,
                "returns": rng.normal(size=prompt + answer),
            }
            elements.append(Element([ids], {"mask": [mask]} | {k: [v.astype(np.float32)] for k, v in columns.items()}))
        result.append(elements)
    return result


def plain_torch(path: Path, head: str) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """PPO's two losses, one sample at a time, eager attention, whole logits, torch's own clipping and AdamW."""
    if head == "actor":
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    else:
        model = AutoModelForTokenClassification.from_pretrained(
            path, dtype=torch.float32, num_labels=1, attn_implementation="eager"
        )
        torch.nn.init.constant_(model.score.bias, 0.5)
    model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    history = []
    for elements in batches():
        tokens, total = sum(float(e.tokens["mask"][0].sum()) for e in elements), 0.0
        for element in elements:
            f = {name: torch.tensor(np.asarray(values[0])) for name, values in element.tokens.items()}
            start = int((f["mask"] == 0).sum())
            ids = torch.tensor(element.sequences)
            logits = model(input_ids=ids).logits[0, start - 1 : -1]
            if head == "actor":
                new = logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
                ratio, adv = torch.exp(new - f["old_logprobs"][start:]), f["advantages"][start:]
                loss = -torch.minimum(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv).sum() / tokens
            else:
                v, old, ret = logits[:, 0], f["old_values"][start:], f["returns"][start:]
                clipped = old + (v - old).clamp(-CLIP, CLIP)
                loss = 0.5 * torch.maximum((v - ret) ** 2, (clipped - ret) ** 2).sum() / tokens
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), NORM).item()
        optimizer.step()
        optimizer.zero_grad()
        history.append((total, norm))
    return history, {name: tensor.detach().clone() for name, tensor in named_weights(model)}


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
    """The largest token budget that cuts the largest batch into at least this many micro-batches, all ranks together."""
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
