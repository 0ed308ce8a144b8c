"""Statistics of evaluation results: confidence intervals, a sign test, calibration. All in float64."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Interval:
    """A mean over n independent items and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


@dataclass(frozen=True)
class Paired:
    """Mean difference of two models' outcomes on the same n items, bounds of its confidence interval, and the two-sided
    p-value of a sign test over the items on which they differ."""

    difference: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p:.2g}"


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Return the confidence interval of a proportion (Wilson 1927: the values of p that a score test does not reject).

    successes: 0..n, fractions allowed. With outcomes between 0 and 1 instead of 0 or 1 (a tie counts half, a prompt
    counts its mean over several samples) the interval stays valid and errs on the wide side, because the variance of
    such an outcome is at most p (1 - p). It never has zero width, even at 0 or n. Without items it is (nan, 0, 1).
    Raises ValueError unless successes is in 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n}")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    mean = successes / n
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and 1 the mean is itself a bound; rounding must not push it out.
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)), n)


def win_rate(ours: ArrayLike, theirs: ArrayLike, margin: float = 0.0, confidence: float = 0.95) -> Interval:
    """Return how often ours scores above theirs on the same prompt; a difference up to `margin` counts half, as a tie.

    ours, theirs: [N] or [N, S] scores; row i of both belongs to prompt i. The S samples of a prompt are averaged first,
    so that n is the number of prompts: samples of one prompt are not independent. Raises ValueError for other shapes
    and for scores that are not finite.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise ValueError(f"scores of shapes {a.shape} and {b.shape} cannot be paired")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is not finite; leave that prompt out of both sides")
    difference = a - b
    outcome = np.where(np.abs(difference) <= margin, 0.5, (difference > 0).astype(np.float64))
    per_prompt = outcome if outcome.ndim == 1 else outcome.mean(axis=1)
    return wilson_interval(math.fsum(per_prompt), len(per_prompt), confidence)


def binomial_p_value(successes: int, n: int, p: float = 0.5) -> float:
    """Return the exact one-sided p-value P(X >= successes) for X ~ Binomial(n, p).

    For a sign test, leave ties out of n. Raises ValueError unless successes is in 0..n and p in (0, 1).
    """
    if not (0 <= successes <= n and 0 < p < 1):
        raise ValueError(f"{successes} successes in {n} with p = {p}")
    log_p, log_q, whole = math.log(p), math.log1p(-p), math.lgamma(n + 1)
    terms = (
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q)
        for k in range(successes, n + 1)
    )
    return min(1.0, math.fsum(terms))


def paired_difference(ours: ArrayLike, theirs: ArrayLike, confidence: float = 0.95) -> Paired:
    """Return how much higher ours is than theirs on the same items.

    ours, theirs: [N] outcomes. The interval is mean +- z s / sqrt(N) of the differences. The p-value is that of an
    exact sign test (Dixon and Mood 1946), which assumes nothing about their size. Raises ValueError for other shapes,
    and without items.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"outcomes of shapes {a.shape} and {b.shape} cannot be paired")
    differences = a - b
    mean = float(differences.mean())
    spread = float(differences.std(ddof=1)) / math.sqrt(len(a)) if len(a) > 1 else math.inf
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread if spread else 0.0
    more, less = int((differences > 0).sum()), int((differences < 0).sum())
    p = min(1.0, 2 * binomial_p_value(max(more, less), more + less)) if more + less else 1.0
    return Paired(mean, mean - half, mean + half, p, len(a))


@dataclass(frozen=True)
class PairAccuracy:
    """Accuracy and calibration error of a reward model on held-out pairs."""

    accuracy: Interval
    calibration_error: float


def pair_accuracy(margins: ArrayLike, bins: int = 10) -> PairAccuracy:
    """Return accuracy and calibration of [N] margins: score of the better answer minus score of the worse one.

    A margin of 0 counts half. The model's confidence in its own choice is sigmoid(|margin|) (Bradley and Terry 1952).
    Pairs of one prompt are not independent, which makes the interval too narrow; use `win_rate` on [N, S] for them.
    """
    x = np.asarray(margins, np.float64)
    correct = np.where(x == 0, 0.5, (x > 0).astype(np.float64))
    confidence = 1 / (1 + np.exp(-np.abs(x)))
    return PairAccuracy(
        wilson_interval(math.fsum(correct), len(x)), expected_calibration_error(confidence, correct, bins)
    )


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike, bins: int = 10) -> float:
    """Return the mean over items of |accuracy - confidence| of their bin (Guo et al. 2017, equation 3).

    confidences: [N] in 0..1; correct: [N] outcomes in 0..1. bins: their number, of equal width; a bin is (low, high],
    and 0 belongs to the first one. Without items it is nan. Raises ValueError for other shapes or values.
    """
    p, y = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"confidences of shape {p.shape} and outcomes of shape {y.shape}")
    if len(p) == 0:
        return math.nan
    if p.min() < 0 or p.max() > 1:
        raise ValueError("a confidence lies outside 0..1")
    index = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=y - p, minlength=bins)  # count x (accuracy - confidence) of each bin
    return float(np.abs(gaps).sum() / len(p))
