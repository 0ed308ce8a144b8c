"""A policy that continues film reviews, made to prefer the friendly ones (Ziegler et al. 2019): the whole recipe."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.chat_tokens import encode_chat
from helpers.corpora import needs
from helpers.example_measures import answers, naive_bayes, rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from quadriga.orchestrator.evaluation.statistics import binomial_p_value, wilson_interval
from quadriga.orchestrator.tracking.tracker import read_metrics

ANSWERS = 600


@pytest.mark.slow
@needs("sentence-polarity")
def test_the_reward_model_ranks_and_ppo_raises_the_share_of_friendly_continuations(
    ray_cluster: None, in_clone: Path, documented: Callable[..., None]
) -> None:
    """Pairs and openings that no model saw; the judge learnt from reviews that are in none of the models' files."""
    documented(
        "python -m quadriga.data.examples sentiment corpora/sentence-polarity/sentences.jsonl runs/sentiment-data"
    )
    documented("quadriga run configs/examples/sentiment/pipeline.yaml")
    data, run = in_clone / "runs/sentiment-data", in_clone / "runs/sentiment/round-0"

    pairs = rows(data / "heldout_pairs.jsonl")
    better = sum(margin > 0 for margin in margins(run / "reward/export/reward", pairs))
    accuracy, p_value = wilson_interval(better, len(pairs)), binomial_p_value(better, len(pairs))
    print(f"\nheld-out pair accuracy {accuracy}, one-sided p {p_value:.1e}")
    assert accuracy.mean > 0.60 and p_value < 0.01
    # All of a pair's tokens are there, so what transformers counts here is what the stage logged.
    logged = read_metrics(run / "reward/metrics.jsonl")[-1]
    assert logged["eval/accuracy"] == pytest.approx(accuracy.mean, abs=0.005)

    judge = naive_bayes(rows(data / "judge.jsonl"))
    prompts = [row["prompt"] for row in rows(data / "heldout_prompts.jsonl")][:ANSWERS]
    share = {}
    for stage in ("sft", "ppo"):
        texts = answers(run / stage / "export/policy", prompts, max_tokens=32)
        share[stage] = wilson_interval(sum(map(judge, texts)), len(texts))
        print(f"{stage}: positive {share[stage]}", *texts[:3], sep="\n  ")
        assert len(set(texts)) > 0.9 * len(texts)  # nothing that is said every time
    assert share["ppo"].low > share["sft"].high


def margins(model: Path, pairs: list[dict[str, str]], max_tokens: int = 44) -> list[float]:
    """Score of chosen minus score of rejected, one sequence at a time in transformers."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    scorer = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()

    def score(prompt: str, answer: str) -> float:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        with torch.no_grad():
            return float(scorer(torch.tensor([encode_chat(tokenizer, messages)[0][:max_tokens]])).logits)

    return [score(pair["prompt"], pair["chosen"]) - score(pair["prompt"], pair["rejected"]) for pair in pairs]
