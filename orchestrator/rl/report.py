"""What a PPO step reports: the metrics besides its losses, and answers for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quadriga.data.records import Sample
from quadriga.orchestrator.rewards.base import Scores
from quadriga.orchestrator.rl.experience import Experience


def reward_metrics(scores: Scores, stats: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of the reward, given the statistics of the advantages."""
    metrics = {f"reward/part/{name}": value for name, value in part_means(scores).items()}
    metrics |= {f"reward/{key}": stats[key] for key in ("score", "score_std", "score_min", "score_max")}
    return metrics | {
        "reward/total": stats["reward"],
        "reward/errors": float(scores.errors),
        "reward/dropped": float(sum(value is None for value in scores.values)),
    }


def part_means(scores: Scores) -> dict[str, float]:
    """Return the mean of each number beside the score, over the answers that have it."""
    names = sorted({name for parts in scores.parts for name in parts} - {"score"})
    return {name: float(np.mean([parts[name] for parts in scores.parts if name in parts])) for name in names}


def policy_metrics(stats: Mapping[str, float], kl_coefficient: float) -> dict[str, float]:
    """Return the metrics of policy and critic that the advantages gave."""
    metrics = {
        "actor/kl": stats["kl"],
        "actor/kl_per_sample": stats["kl_per_sample"],
        "actor/kl_coefficient": kl_coefficient,
        "actor/advantage_std": stats["advantage_std"],
    }
    for key in ("groups_single", "groups_equal"):
        if key in stats:
            metrics |= {f"reward/{key}": stats[key]}
    if "explained_variance" in stats:
        metrics |= {"critic/explained_variance": stats["explained_variance"]}
        metrics |= {"critic/value_mean": stats["value_mean"], "critic/return_mean": stats["return_mean"]}
    return metrics


def silent_groups(stats: Mapping[str, float]) -> str | None:
    """Return a sentence about the prompts whose answers teach nothing in this step, None if there are none."""
    single, equal = int(stats.get("groups_single", 0)), int(stats.get("groups_equal", 0))
    if not single and not equal:
        return None
    return (
        f"of {stats['groups']:.0f} prompts, {equal} have answers of equal reward and {single} a single answer: they "
        "teach nothing (reward/groups_equal, reward/groups_single)"
    )


def rollout_metrics(samples: Sequence[Sample], timings: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of the answers: lengths, variety, speed. timings: seconds per part of the step."""
    lengths = [len(sample.response_ids) for sample in samples]
    return {
        "rollout/response_length": float(np.mean(lengths)),
        "rollout/response_length_max": float(max(lengths)),
        "rollout/distinct_answers": len({sample.text for sample in samples}) / len(samples),
        "perf/samples_per_second": len(samples) / max(1e-9, sum(timings.values())),
        "perf/generated_tokens_per_second": sum(lengths) / max(1e-9, timings["generate"]),
    }


def gold_metrics(gold: Scores | None) -> dict[str, float]:
    """Return the mean gold score of the answers that have one."""
    if gold is None:
        return {}
    good = [value for value in gold.values if value is not None]
    return {"reward/gold": float(np.mean(good)) if good else float("nan")}


def mean_entropy(experience: Experience) -> float:
    """Return the mean entropy of the policy over action tokens, in nats."""
    mask = np.concatenate([np.asarray(sample.action_mask, np.float64) for sample in experience.samples])
    return float((np.concatenate(experience.columns["entropy"]).astype(np.float64) * mask).sum() / mask.sum())


def sample_rows(experience: Experience, reward_version: str) -> list[dict[str, Any]]:
    """Return the answers of a step as rows for people to read, with what the reward gave beside their scores."""
    rows = []
    logprobs, ref_logprobs = experience.columns["old_logprobs"], experience.columns["ref_logprobs"]
    for index, sample in enumerate(experience.samples):
        row = {
            "prompt_id": sample.prompt.id,
            "sample_index": sample.index,
            "prompt": sample.prompt.messages[-1]["content"],
            "response": sample.text,
            "reward": experience.numbers["score"][index],
            "kl": float(np.sum(logprobs[index] - ref_logprobs[index])),
            "finish_reason": sample.finish_reason,
            "policy_version": sample.versions[0],
            "reward_version": reward_version,
        }
        for numbers in ("reward_parts", "reward_texts"):
            given = experience.numbers[numbers][index] if numbers in experience.numbers else {}
            row |= {f"reward/{name}": value for name, value in given.items() if name != "score"}
        if "gold" in experience.numbers:
            row["gold"] = experience.numbers["gold"][index]
        rows.append(row)
    return rows
