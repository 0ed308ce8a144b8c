"""From scores and log-probabilities to advantages: the driver's arithmetic between scoring and updating.

Everything here is numpy in float64 over action tokens: they carry the KL penalty, and the last one the score;
estimation steps from one action token to the next.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadriga.data.errors import Fault
from quadriga.orchestrator.algorithms.base import Steps
from quadriga.orchestrator.algorithms.kl import kl_penalty
from quadriga.orchestrator.algorithms.settings import AlgorithmSettings
from quadriga.orchestrator.rl.experience import Experience, check_finite

Float64 = NDArray[np.float64]


def add_advantages(experience: Experience, settings: AlgorithmSettings, kl_coefficient: float) -> dict[str, float]:
    """Add `advantages`, `returns` (with a critic) and `token_rewards` to an experience; return statistics.

    It must have the number `score` and the columns `old_logprobs`, `ref_logprobs`, and `old_values` if the estimator
    needs a critic. The columns that are added are float32 and 0 outside the action mask. An answer that was cut off
    loses `missing_eos_penalty` and is then treated as over: nothing is bootstrapped after its last token, because the
    limit on its length is part of the task.

    Statistics: `score` (mean, `_std`, `_min`, `_max`; as given), `reward` (sum of a sample's token rewards, mean over
    samples), `kl` (mean over action tokens) and `kl_per_sample` (mean over samples of their sums), both with the
    estimator that is trained on, `ended` (share), `action_tokens`, `advantage_mean` and `_std` (before whitening), and
    with a critic `return` (`_mean`, `_std`), `value_mean` and `explained_variance`, and with an estimator that compares
    the answers to a prompt `groups`, `groups_single` and `groups_equal`, which teach nothing.

    Raises Fault for an empty experience, a number that is not finite, or a sample without an action token.
    """
    offsets, estimator = experience.offsets, settings.estimator
    scores = np.asarray(experience.numbers["score"], np.float64)
    check_finite("score", scores, lambda index: index)
    ended = np.array([sample.ended for sample in experience.samples], bool)
    kl = kl_penalty(experience.flat("old_logprobs"), experience.flat("ref_logprobs"), settings.kl.estimator)
    shaped = shaped_scores(scores, ended, settings)
    rewards = -kl_coefficient * kl
    rewards[offsets[1:] - 1] += shaped
    if estimator.needs_critic and "old_values" not in experience.columns:
        raise Fault(f"the estimator {estimator.type!r} needs a critic's values", phase="advantages")
    values = experience.flat("old_values") if estimator.needs_critic else None
    steps = Steps(rewards, values, shaped, experience.groups(), offsets)
    found = estimator(steps)
    experience.add({"advantages": experience.spread(found.advantages), "token_rewards": experience.spread(rewards)})
    stats = {
        "score": float(scores.mean()),
        "score_std": float(scores.std()),
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "reward": float(rewards.sum()) / len(scores),
        "kl": float(kl.mean()),
        "kl_per_sample": float(kl.sum()) / len(scores),
        "ended": float(ended.mean()),
        "action_tokens": float(len(kl)),
        "advantage_mean": float(found.advantages.mean()),
        "advantage_std": float(found.advantages.std()),
    }
    if found.returns is not None and values is not None:
        experience.add({"returns": experience.spread(found.returns)})
        stats |= {"return_mean": float(found.returns.mean()), "return_std": float(found.returns.std())}
        stats |= {"value_mean": float(values.mean()), "explained_variance": explained_variance(values, found.returns)}
    if estimator.needs_group:
        stats |= steps.group_stats()
    return stats | found.stats


def shaped_scores(scores: ArrayLike, ended: ArrayLike, settings: AlgorithmSettings) -> Float64:
    """Return [N] scores: clipped to ±reward_clip, then minus the missing-end penalty, untouched by the clipping."""
    scores = np.asarray(scores, np.float64)
    if settings.reward_clip is not None:
        scores = scores.clip(-settings.reward_clip, settings.reward_clip)
    return scores - settings.missing_eos_penalty * ~np.asarray(ended, bool)


def explained_variance(values: ArrayLike, returns: ArrayLike) -> float:
    """Return 1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 no better than a constant.

    It is 0 where the returns do not vary.
    """
    values, returns = np.asarray(values, np.float64), np.asarray(returns, np.float64)
    variance = returns.var()
    return float(1.0 - (returns - values).var() / variance) if variance > 0 else 0.0
