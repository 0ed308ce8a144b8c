"""PPO's two losses in plain torch, and three batches to run them on: what sharded hosts are compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from quadriga.actors.model.batch import Element
from quadriga.actors.weights.source import named_weights

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
            elements.append(
                Element([ids], {"weights": [mask]} | {k: [v.astype(np.float32)] for k, v in columns.items()})
            )
        result.append(elements)
    return result


@dataclass
class PlainRun:
    """Three steps of one model: (loss, gradient norm) and gradients before clipping per step, weights at the end."""

    history: list[tuple[float, float]]
    gradients: list[dict[str, torch.Tensor]]
    weights: dict[str, torch.Tensor]


def plain_torch(path: Path, head: str) -> PlainRun:
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
    history, gradients = [], []
    for elements in batches():
        tokens, total = sum(float(e.tokens["weights"][0].sum()) for e in elements), 0.0
        for element in elements:
            f = {name: torch.tensor(np.asarray(values[0])) for name, values in element.tokens.items()}
            start = int((f["weights"] == 0).sum())
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
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), NORM).item()
        optimizer.step()
        optimizer.zero_grad()
        history.append((total, norm))
    return PlainRun(history, gradients, {name: tensor.detach().clone() for name, tensor in named_weights(model)})
