"""Work: the tokens that one step of a stage moves through its models, from which `quadriga plan` estimates times."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Elements = list[list[int]]
"""Lengths in tokens of the sequences of each element: they stay together in a micro-batch."""


@dataclass(frozen=True)
class Work:
    """The tokens of one step.

    updates: elements of each optimizer step. sequences: what forward passes read. prompts: lengths, one per request.
    answer: tokens of each answer. assumed: what had to be, in sentences.
    """

    updates: list[Elements] = field(default_factory=list)
    sequences: Elements = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    answer: int = 0
    assumed: list[str] = field(default_factory=list)


def evenly(elements: Sequence[list[int]], number: int) -> Elements:
    """Return this number of elements, at equal distances in the order of their sizes."""
    ordered = sorted(elements, key=sum)
    return [ordered[int((index + 0.5) * len(ordered) / number)] for index in range(number)]
