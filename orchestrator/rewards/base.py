"""One interface for what PPO maximises. An error is never a zero."""

from dataclasses import dataclass
from typing import Protocol

from quadriga.data.records import Sample


@dataclass(frozen=True)
class Scores:
    """One score a sample, None where it could not be had; named parts; how many failed."""

    values: list[float | None]
    parts: list[dict[str, float]]
    errors: int


class PendingScores(Protocol):
    """Scores under way."""

    def result(self) -> Scores:
        """Wait for them."""
        ...


class Reward(Protocol):
    """Scores answers. `start` returns at once where it can, so that other passes run meanwhile."""

    version: str
    """Which reward this is; every sample is marked with it."""

    def start(self, samples: list[Sample]) -> PendingScores:
        """Begin to score."""
        ...
