"""Generalised advantage estimation (GAE) over sequences of any length."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def segmented_gae(
    rewards: ArrayLike,
    values: ArrayLike,
    offsets: ArrayLike,
    gamma: float,
    lam: float,
) -> tuple[Float64, Float64]:
    """Return advantages and returns of N sequences laid end to end (Schulman et al. 2016, equations 11, 12 and 16).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t. After the last step of a
    sequence, V and A are 0.

    rewards, values: [T]; values[t] belongs to the state in which step t is chosen. offsets: [N+1] borders.
    Returns (advantages [T], returns [T]) in float64. Raises ValueError if lengths do not fit.
    """
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    starts, ends = _borders(np.asarray(offsets, np.int64), len(rewards), len(values))
    advantages = np.zeros_like(rewards)
    # All sequences are walked backwards together; the longest come first, so those still running are a prefix.
    longest_first = np.argsort(starts - ends, kind="stable")
    starts, ends = starts[longest_first], ends[longest_first]
    next_value, next_advantage = np.zeros(len(starts)), np.zeros(len(starts))
    lengths = ends - starts
    for back in range(1, int(lengths.max(initial=0)) + 1):
        active = int(np.searchsorted(-lengths, -back, side="right"))
        at = ends[:active] - back
        delta = rewards[at] + gamma * next_value[:active] - values[at]
        next_advantage[:active] = delta + gamma * lam * next_advantage[:active]
        advantages[at] = next_advantage[:active]
        next_value[:active] = values[at]
    return advantages, advantages + values


def _borders(offsets: NDArray[Any], rewards: int, values: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first and the one-past-last index of each sequence. Raises ValueError if they do not span T."""
    if rewards != values or offsets[0] != 0 or offsets[-1] != rewards or (np.diff(offsets) < 0).any():
        raise ValueError(f"{rewards} rewards, {values} values and offsets {offsets[:1]}..{offsets[-1:]} do not fit")
    return offsets[:-1], offsets[1:]
