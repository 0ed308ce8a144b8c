"""From scores and log-probabilities to advantages: the driver's arithmetic between scoring and updating.

Everything here is numpy in float64 on ragged lists: one array per sample, one entry per response token. Tokens whose
action mask is 0 (what a tool or an environment wrote) are in the sequence but took no decision: they carry no KL
penalty and no reward, and estimation steps from one action token to the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadriga.data.errors import Fault
from quadriga.kernels.gae import segmented_gae
from quadriga.orchestrator.algorithms.kl import kl_penalty
from quadriga.orchestrator.algorithms.settings import AlgorithmSettings
from quadriga.orchestrator.algorithms.whitening import whiten

Float64 = NDArray[np.float64]
Ragged = Sequence[ArrayLike]


@dataclass(frozen=True)
class Experience:
    """N samples before their advantages are computed.

    scores: [N], from the reward. ended: [N] bool, False for answers cut off at the length limit.
    logprobs, ref_logprobs, values: N arrays over response tokens; values may be None for an estimator without a critic.
    action_masks: N arrays of 0 and 1 over response tokens.
    """

    scores: ArrayLike
    ended: ArrayLike
    logprobs: Ragged
    ref_logprobs: Ragged
    action_masks: Ragged
    values: Ragged | None = None


@dataclass(frozen=True)
class Advantages:
    """N float32 arrays each, over response tokens, 0 outside the action mask; stats are plain numbers.

    advantages: whitened where the settings say so. returns: what the critic learns, None without one.
    token_rewards: penalised and, where the settings say so, whitened.
    """

    advantages: list[NDArray[np.float32]]
    returns: list[NDArray[np.float32]] | None
    token_rewards: list[NDArray[np.float32]]
    stats: dict[str, float]


def compute(experience: Experience, settings: AlgorithmSettings, kl_coefficient: float) -> Advantages:
    """Compute KL-shaped token rewards, advantages and returns of a whole batch.

    An answer that was cut off loses `missing_eos_penalty` and is then treated as over: nothing is bootstrapped after
    its last token, because the limit on its length is part of the task.

    Statistics: `score` (mean, `_std`, `_min`, `_max`; as given), `reward` (sum of a sample's token rewards before
    whitening, mean over samples), `kl` (mean over action tokens) and `kl_per_sample` (mean over samples of their sums),
    both with the estimator that is trained on, `ended` (share), `action_tokens`, `advantage` and `return` (`_mean`,
    `_std`, before whitening), `value_mean`, `explained_variance`.

    Raises Fault when there is no sample, lengths do not fit, a number is not finite or a sample has no action token to
    carry its score.
    """
    steps = _Steps(experience)
    kl = kl_penalty(steps.flatten("logprobs"), steps.flatten("ref_logprobs"), settings.kl.estimator)
    rewards = -kl_coefficient * kl
    rewards[steps.last] += shaped_scores(steps.scores, steps.ended, settings)
    stats = {
        "score": float(steps.scores.mean()),
        "score_std": float(steps.scores.std()),
        "score_min": float(steps.scores.min()),
        "score_max": float(steps.scores.max()),
        "reward": float(rewards.sum()) / len(steps.scores),
        "kl": float(kl.mean()),
        "kl_per_sample": float(kl.sum()) / len(steps.scores),
        "ended": float(steps.ended.mean()),
        "action_tokens": float(len(kl)),
    }
    if settings.whiten_rewards:
        rewards = whiten(rewards, shift_mean=False)
    estimator = ESTIMATORS[settings.estimator](settings)
    if estimator.needs_critic and experience.values is None:
        raise Fault(f"the estimator {settings.estimator!r} needs a critic's values", phase="advantages")
    values = steps.flatten("values") if estimator.needs_critic else None
    advantages, returns = estimator(rewards, values, steps.offsets)
    stats |= {"advantage_mean": float(advantages.mean()), "advantage_std": float(advantages.std())}
    if returns is not None and values is not None:
        stats |= {"return_mean": float(returns.mean()), "return_std": float(returns.std())}
        stats |= {"value_mean": float(values.mean()), "explained_variance": explained_variance(values, returns)}
    if settings.whiten_advantages:
        advantages = whiten(advantages)
    return Advantages(
        advantages=steps.unflatten(advantages),
        returns=None if returns is None else steps.unflatten(returns),
        token_rewards=steps.unflatten(rewards),
        stats=stats,
    )


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


class Estimator(Protocol):
    """Turns the rewards of all action tokens, laid end to end, into advantages.

    __call__(rewards [T], values [T] or None, offsets [N+1]) -> (advantages [T], returns [T] or None).
    """

    needs_critic: ClassVar[bool]

    def __call__(
        self, rewards: Float64, values: Float64 | None, offsets: NDArray[np.int64]
    ) -> tuple[Float64, Float64 | None]: ...


@dataclass(frozen=True)
class Gae:
    """Generalised advantage estimation (Schulman et al. 2016), nothing bootstrapped after the last token."""

    settings: AlgorithmSettings
    needs_critic: ClassVar[bool] = True

    def __call__(
        self, rewards: Float64, values: Float64 | None, offsets: NDArray[np.int64]
    ) -> tuple[Float64, Float64 | None]:
        assert values is not None
        return segmented_gae(rewards, values, offsets, self.settings.gamma, self.settings.lam)


ESTIMATORS: dict[str, type[Gae]] = {"gae": Gae}
"""Estimators by the name in `algorithm.estimator`."""


def needs_critic(settings: AlgorithmSettings) -> bool:
    """Return whether the estimator of these settings reads a critic's values."""
    return ESTIMATORS[settings.estimator].needs_critic


class _Steps:
    """The action tokens of a batch as flat arrays, and the way back.

    offsets: [N+1] borders of the samples; last: [N] where each sample's last action token is.
    """

    def __init__(self, experience: Experience):
        self.experience = experience
        self.scores = np.asarray(experience.scores, np.float64)
        self.ended = np.asarray(experience.ended, bool)
        self.masks = [np.asarray(mask, bool) for mask in experience.action_masks]
        if not len(self.scores) == len(self.ended) == len(self.masks):
            raise Fault(
                f"{len(self.scores)} scores, {len(self.ended)} end marks and {len(self.masks)} action masks do not fit",
                phase="advantages",
            )
        if not len(self.scores):
            raise Fault("there is no sample to compute advantages of", phase="advantages")
        _check_finite("score", self.scores, lambda index: index)
        counts = np.array([int(mask.sum()) for mask in self.masks], np.int64)
        if (empty := np.flatnonzero(counts == 0)).size:
            raise Fault(f"sample {empty[0]} has no action token that could carry its score", phase="advantages")
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.last = self.offsets[1:] - 1

    def flatten(self, name: str) -> Float64:
        """Return a field of the experience at action tokens, [T] float64."""
        arrays = [np.asarray(array, np.float64) for array in getattr(self.experience, name)]
        if len(arrays) != len(self.masks):
            raise Fault(f"{len(arrays)} arrays of {name} for {len(self.masks)} samples", phase="advantages")
        for index, (array, mask) in enumerate(zip(arrays, self.masks, strict=True)):
            if len(array) != len(mask):
                raise Fault(
                    f"sample {index} has {len(array)} {name} for {len(mask)} response tokens", phase="advantages"
                )
        flat = np.concatenate([array[mask] for array, mask in zip(arrays, self.masks, strict=True)])
        _check_finite(name, flat, lambda position: int(np.searchsorted(self.offsets, position, side="right")) - 1)
        return flat

    def unflatten(self, flat: Float64) -> list[NDArray[np.float32]]:
        """Return N float32 arrays over response tokens, 0 where no action was taken."""
        out = [np.zeros(len(mask), np.float32) for mask in self.masks]
        for array, mask, part in zip(out, self.masks, np.split(flat, self.offsets[1:-1]), strict=True):
            array[mask] = part
        return out


def _check_finite(name: str, values: NDArray[Any], sample: Callable[[int], int]) -> None:
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        raise Fault(f"sample {sample(int(bad[0]))}: {name} is {values[bad[0]]}", phase="advantages")
