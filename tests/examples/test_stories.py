"""A real pre-trained model goes through fine-tuning and export, and is refused where it cannot be served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpora import needs
from transformers import AutoModelForCausalLM, AutoTokenizer

from quadriga.actors.model.heads import ModelSpec, load_model, token_logprobs
from quadriga.data.loading.datasets import load_demonstrations
from quadriga.data.records import Tokens
from quadriga.data.tokens.tokenizer import load_tokenizer
from quadriga.launch.config.load import load_config
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = [pytest.mark.integration, needs("stories260K", "sentence-polarity")]
ORIGINAL = "corpora/stories260K/hf"
SENTIMENT = "python -m quadriga.data.examples sentiment corpora/sentence-polarity/sentences.jsonl runs/sentiment-data"


def test_fine_tuning_and_export(ray_cluster: None, in_clone: Path, documented: Callable[..., None]) -> None:
    """The loss falls; transformers reads from the export what the trainer knew, with the original tokenizer."""
    documented(SENTIMENT)
    documented("quadriga run configs/examples/stories260k/sft.yaml", "total_steps=15", "cluster.actor.threads=1")
    run = in_clone / "runs/stories260k-sft"
    metrics = read_metrics(run / "metrics.jsonl")
    losses = [row["train/loss"] for row in metrics]
    print(f"\nloss {losses[0]:.3f} -> {losses[-1]:.3f}, held out {metrics[-1]['eval/loss']:.3f}")
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2

    export = run / "export/policy"
    original, exported = AutoTokenizer.from_pretrained(ORIGINAL), AutoTokenizer.from_pretrained(export)
    settings = load_config("configs/examples/stories260k/sft.yaml")
    rows = load_demonstrations(settings.data, load_tokenizer(ORIGINAL), settings.seed).heldout
    for row in rows[:20]:
        text = original.decode(row.token_ids)
        assert original(text).input_ids == exported(text).input_ids

    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    theirs = [plain_logprobs(model, row.token_ids) for row in rows]
    # What the trainer measured with its own weights is what the exported ones give.
    masks = [torch.tensor(row.loss_mask[1:], dtype=torch.float64) for row in rows]
    total = sum(float((values.double() * mask).sum()) for values, mask in zip(theirs, masks, strict=True))
    assert -total / float(sum(mask.sum() for mask in masks)) == pytest.approx(metrics[-1]["eval/loss"], rel=1e-5)
    # And the product's packed forward of the export is the plain one, token by token.
    ours = packed_logprobs(export, rows[:10])
    for packed, plain in zip(ours, theirs, strict=False):
        torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)


def plain_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """log p of each token but the first."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def packed_logprobs(folder: Path, rows: list[Tokens]) -> list[torch.Tensor]:
    """The same from all sequences in one row, as the hosts do it."""
    model = load_model(ModelSpec(str(folder), "logprobs"), torch.float32)
    lengths = [len(row.token_ids) for row in rows]
    positions = torch.cat([torch.arange(n) for n in lengths])
    batch = {
        "token_ids": torch.tensor([token for row in rows for token in row.token_ids]),
        "position_ids": positions,
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "first": positions == 0,
    }
    with torch.no_grad():
        logprobs, _ = token_logprobs(model, model, batch, 1.0)
    return [part[1:] for part in logprobs.split(lengths)]


def test_doctor_refuses_its_heads_for_rollout_on_a_cpu(
    documented: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """vLLM on CPU serves no heads of 8 elements; the reason is said before anything starts."""
    documented(SENTIMENT)
    documented("quadriga doctor configs/examples/stories260k/ppo.yaml", code=2)
    said = " ".join(capfd.readouterr().out.split())
    assert "attention heads have 8 elements (head_dim)" in said and "vLLM" in said
