"""What an optimizer step is made of: elements, the parts of its loss over them, and packed micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quadriga.data.tokens.packing import BatchPlan, PackedBatch, pack

if TYPE_CHECKING:  # imports torch, which the driver need not do
    from quadriga.kernels.losses.base import Loss


@dataclass
class Element:
    """Sequences that stay together in a micro-batch: one sequence, or all answers to a prompt.

    tokens: per-token fields by name, one array per sequence, aligned with its tokens. per_sequence: per-sequence fields
    by name, one number per sequence. All elements of a batch have the same fields.
    """

    sequences: list[list[int]]
    tokens: dict[str, list[Any]] = field(default_factory=dict)
    per_sequence: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of all sequences together."""
        return sum(len(sequence) for sequence in self.sequences)

    def filler(self) -> "Element":
        """Return one sequence of two tokens with this element's fields, all zero: a loss over it is zero.

        A rank without an element for a micro-batch runs it, so that all ranks meet in every collective.
        """
        return Element(
            [[0, 0]],
            {name: [np.zeros(2, np.asarray(arrays[0]).dtype)] for name, arrays in self.tokens.items()},
            {name: [np.zeros_like(values[0])] for name, values in self.per_sequence.items()},
        )


@dataclass(frozen=True)
class Term:
    """A part without its elements, as a worker gets it: coefficient / normalizer * the loss's sum.

    prefix: of the names of its statistics.
    """

    loss: "Loss"
    normalizer: float
    coefficient: float = 1.0
    prefix: str = ""


@dataclass(frozen=True)
class LossPart:
    """One term of an optimizer step: coefficient / normalizer * the loss's sum over all elements.

    normalizer: divisor of the sum over the whole batch of all ranks (units: tokens, sequences or prompts). name: the
    statistics of a part with one are called `<name>_<statistic>`. Parts over the same list of elements share its
    forward pass.
    """

    loss: "Loss"
    elements: Sequence[Element]
    normalizer: float
    coefficient: float = 1.0
    name: str = ""

    @property
    def term(self) -> Term:
        """The part without its elements."""
        return Term(self.loss, self.normalizer, self.coefficient, f"{self.name}_" if self.name else "")


def shared_passes(parts: Sequence[LossPart]) -> list[tuple[Sequence[Element], tuple[Term, ...]]]:
    """Return each distinct list of elements with the terms over it, in the order of their first parts.

    Raises ValueError if losses that would share a pass read different heads.
    """
    passes: dict[int, tuple[Sequence[Element], list[Term]]] = {}
    for part in parts:
        passes.setdefault(id(part.elements), (part.elements, []))[1].append(part.term)
    for _, terms in passes.values():
        if len(heads := {term.loss.head for term in terms}) > 1:
            raise ValueError(f"losses over the same elements read different heads: {', '.join(sorted(heads))}")
    return [(elements, tuple(terms)) for elements, terms in passes.values()]


def pack_elements(elements: Sequence[Element], fields: Sequence[str]) -> PackedBatch:
    """Return elements as one packed batch with the named fields, of which `group` is the number of the element.

    Raises KeyError if an element lacks a field.
    """
    sequences = [sequence for element in elements for sequence in element.sequences]
    per_sequence = {"group": [number for number, e in enumerate(elements) for _ in e.sequences]} | {
        name: [value for e in elements for value in e.per_sequence[name]] for name in elements[0].per_sequence
    }
    tokens = {name: [x for e in elements for x in e.tokens[name]] for name in fields if name not in per_sequence}
    numbers = {name: np.asarray(per_sequence[name]) for name in fields if name in per_sequence}
    return pack(sequences, tokens, numbers)


def pack_layout(layout: BatchPlan, elements: Sequence[Element], fields: Sequence[str]) -> list[list[PackedBatch]]:
    """Pack the micro-batches of every rank, empty ones as a filler."""
    return [
        [pack_elements([elements[i] for i in micro] or [elements[0].filler()], fields) for micro in rank]
        for rank in layout.ranks
    ]
