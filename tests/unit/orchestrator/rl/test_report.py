"""What a step reports of its rewards."""

import numpy as np

from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.rewards.base import Scores
from quadriga.orchestrator.rl.experience import Experience
from quadriga.orchestrator.rl.report import reward_metrics, sample_rows

STATS = {"score": 0.5, "score_std": 0.0, "score_min": 0.5, "score_max": 0.5, "reward": 0.4}


def test_parts_of_a_reward_are_metrics() -> None:
    scores = Scores([0.5, None, 0.5], [{"score": 0.5, "acc": 1.0}, {}, {"score": 0.5, "acc": 0.0, "total": 3.0}], 1)
    metrics = reward_metrics(scores, STATS)
    assert metrics["reward/part/acc"] == 0.5
    assert metrics["reward/part/total"] == 3.0
    assert metrics["reward/total"] == 0.4
    assert "reward/part/score" not in metrics


def test_parts_and_texts_of_a_reward_are_in_the_table() -> None:
    prompt = Prompt("p", [{"role": "user", "content": "a"}], [1], {})
    experience = Experience([Sample(prompt, 0, [7], [0.0], [1], [0], "stop", "b")])
    experience.add({"old_logprobs": [np.zeros(1)], "ref_logprobs": [np.zeros(1)]})
    for name, value in (("score", 1.0), ("reward_parts", {"score": 1.0, "acc": 1.0}), ("reward_texts", {"pred": "x"})):
        experience.add_numbers(name, [value])
    (row,) = sample_rows(experience, "v")
    assert (row["reward/acc"], row["reward/pred"], row["reward_version"]) == (1.0, "x", "v")
    assert "reward/score" not in row
