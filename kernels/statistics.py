"""Statistics of a loss over micro-batches, ranks and steps.

A statistic is a sum over the units of its loss (see losses.py), except that a name that ends in `_max` or `_min` is an
extreme. This file imports nothing, so that processes without torch can use it.
"""

from collections.abc import Iterable, Mapping


def reduce_statistics(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the statistics of a whole from those of its parts: sums are added, extremes compared."""
    whole: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if name.endswith("_max"):
                whole[name] = max(whole.get(name, value), value)
            elif name.endswith("_min"):
                whole[name] = min(whole.get(name, value), value)
            else:
                whole[name] = whole.get(name, 0.0) + value
    return whole


def mean_statistics(sums: Mapping[str, float], units: float) -> dict[str, float]:
    """Return statistics per unit: sums are divided by `units`, extremes stay as they are."""
    return {name: value if name.endswith(("_max", "_min")) else value / units for name, value in sums.items()}
