"""What the tests measure models with: answers drawn by transformers, and a linear judge of sentiment."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.chat_tokens import encode_prompt


def rows(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(model: Path, prompts: Sequence[str], max_tokens: int, seed: int = 0, batch: int = 100) -> list[str]:
    """One answer a prompt at temperature 1 from the whole distribution, without the engine that training used."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    texts: list[str] = []
    torch.manual_seed(seed)
    for start in range(0, len(prompts), batch):
        ids = [encode_prompt(tokenizer, [{"role": "user", "content": p}]) for p in prompts[start : start + batch]]
        width = max(map(len, ids))
        padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        with torch.no_grad():
            out = policy.generate(
                padded,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        texts += [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
    return texts


def naive_bayes(reviews: Sequence[dict[str, str]]) -> Callable[[str], bool]:
    """Whether a text is positive, by Bernoulli evidence of its words and pairs of words: linear in what occurs.

    Laplace smoothing of 1; only what occurs counts (no evidence from absent words).
    """
    seen: dict[str, Counter[str]] = {"pos": Counter(), "neg": Counter()}
    for review in reviews:
        seen[review["label"]].update(_grams(review["text"]))
    total = {label: sum(review["label"] == label for review in reviews) for label in seen}
    known = seen["pos"].keys() | seen["neg"].keys()
    weight = {
        gram: math.log((seen["pos"][gram] + 1) / (total["pos"] + 2))
        - math.log((seen["neg"][gram] + 1) / (total["neg"] + 2))
        for gram in known
    }
    return lambda text: sum(weight.get(gram, 0.0) for gram in _grams(text)) > 0


def _grams(text: str) -> set[str]:
    words = text.split()
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}
