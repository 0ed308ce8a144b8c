"""A rule as reward: PPO makes a small policy end its solutions in the asked form."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.corpora import needs
from helpers.example_measures import answers

from quadriga.orchestrator.evaluation.statistics import wilson_interval
from quadriga.orchestrator.rewards.rules import final_answer


@pytest.mark.slow
@needs("gsm8k")
def test_the_share_of_answers_in_the_asked_format_rises(
    ray_cluster: None, in_clone: Path, documented: Callable[..., None]
) -> None:
    """On questions of the test split, drawn without the engine that training used."""
    documented("quadriga run configs/examples/gsm8k/pipeline.yaml")
    with gzip.open(in_clone / "corpora/gsm8k/test.jsonl.gz", "rt", encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file][:300]
    share = {}
    for stage in ("sft", "ppo"):
        texts = answers(in_clone / f"runs/gsm8k/round-0/{stage}/export/policy", questions, max_tokens=96)
        share[stage] = wilson_interval(sum(final_answer(text) is not None for text in texts), len(texts))
        print(f"{stage}: in the asked format {share[stage]}", *texts[:2], sep="\n  ")
    assert share["ppo"].low > share["sft"].high
