"""Experience: the samples of a step and what is known of each, in one index space."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadriga.actors.model.batch import Element
from quadriga.data.errors import Fault
from quadriga.data.records import Sample

Array = NDArray[Any]
Float64 = NDArray[np.float64]


class Experience:
    """N samples with named columns and numbers; sample i is number i everywhere.

    columns: name -> N arrays over response tokens (`old_logprobs`, `ref_logprobs`, `old_values`, `advantages` ...).
    numbers: name -> N numbers (`score`, `gold`, `units` ...), None where a sample has none.
    Tokens whose action mask is 0 (what a tool or an environment wrote) are in the sequence but took no decision.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = list(samples)
        self.columns: dict[str, list[Array]] = {}
        self.numbers: dict[str, list[Any]] = {}
        self._masks = [np.asarray(sample.action_mask, bool) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and answer of every sample."""
        return [sample.token_ids for sample in self.samples]

    def add(self, columns: Mapping[str, Sequence[ArrayLike]]) -> None:
        """Add columns. Raises Fault if one has another number of arrays than samples, or an array another length."""
        for name, given in columns.items():
            arrays = [np.asarray(array) for array in given]
            if len(arrays) != len(self):
                raise Fault(f"{len(arrays)} arrays of {name} for {len(self)} samples", phase="advantages")
            for index, (array, mask) in enumerate(zip(arrays, self._masks, strict=True)):
                if len(array) != len(mask):
                    message = f"sample {index} has {len(array)} {name} for {len(mask)} response tokens"
                    raise Fault(message, phase="advantages")
            self.columns[name] = arrays

    def add_numbers(self, name: str, numbers: Sequence[Any]) -> None:
        """Add a number per sample. Raises Fault if there are more or fewer."""
        if len(numbers) != len(self):
            raise Fault(f"{len(numbers)} numbers of {name} for {len(self)} samples", phase="advantages")
        self.numbers[name] = list(numbers)

    def keep(self, mask: Sequence[bool]) -> "Experience":
        """Return the samples whose mask is true, with their columns and numbers."""
        chosen = [index for index, kept in enumerate(mask) if kept]
        kept = Experience([self.samples[i] for i in chosen])
        kept.columns = {name: [arrays[i] for i in chosen] for name, arrays in self.columns.items()}
        kept.numbers = {name: [numbers[i] for i in chosen] for name, numbers in self.numbers.items()}
        return kept

    def groups(self) -> NDArray[np.int64]:
        """Return the number of each sample's prompt, [N], counted from 0 in the order of their first samples."""
        order: dict[str, int] = {}
        return np.array([order.setdefault(sample.prompt.id, len(order)) for sample in self.samples], np.int64)

    def elements(self, indices: Sequence[int], fields: Sequence[str]) -> list[Element]:
        """Return samples as elements with these columns, aligned with their tokens and 0 on the prompt's.

        Raises Fault if a column is not there.
        """
        if missing := [name for name in fields if name not in self.columns]:
            known = ", ".join(sorted(self.columns))
            raise Fault(f"a loss reads the column {missing[0]}, and there are only {known}", phase="update")
        return [self._element(index, fields) for index in indices]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The borders of the samples' action tokens when they are laid end to end, [N+1].

        Raises Fault for an empty experience, or a sample without an action token.
        """
        if not self.samples:
            raise Fault("no samples to compute advantages for", phase="advantages")
        counts = np.array([int(mask.sum()) for mask in self._masks], np.int64)
        if (empty := np.flatnonzero(counts == 0)).size:
            raise Fault(f"sample {empty[0]} has no action token that could carry its score", phase="advantages")
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def flat(self, name: str) -> Float64:
        """Return a column at action tokens, laid end to end, [T]. Raises Fault if a number is not finite."""
        arrays = [np.asarray(array, np.float64) for array in self.columns[name]]
        flat = np.concatenate([array[mask] for array, mask in zip(arrays, self._masks, strict=True)])
        offsets = self.offsets
        check_finite(name, flat, lambda position: int(np.searchsorted(offsets, position, side="right")) - 1)
        return flat

    def spread(self, flat: Float64) -> list[NDArray[np.float32]]:
        """Return [T] numbers of action tokens as a column, 0 where no action was taken."""
        out = [np.zeros(len(mask), np.float32) for mask in self._masks]
        for array, mask, part in zip(out, self._masks, np.split(flat, self.offsets[1:-1]), strict=True):
            array[mask] = part
        return out

    def _element(self, index: int, fields: Sequence[str]) -> Element:
        sample = self.samples[index]
        prompt = np.zeros(len(sample.prompt.token_ids), np.float32)
        columns = {name: np.asarray(self.columns[name][index], np.float32) for name in fields}
        return Element([sample.token_ids], {name: [np.concatenate([prompt, x])] for name, x in columns.items()})


def response_part(sample: Sample, aligned: Any) -> Any:
    """Return the response's part of an array that is aligned with the whole sequence."""
    return aligned[len(sample.prompt.token_ids) :]


def check_finite(name: str, values: NDArray[Any], sample: Callable[[int], int]) -> None:
    """Raise Fault, naming the sample, if a number is not finite. sample: position in `values` -> its sample."""
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        raise Fault(f"sample {sample(int(bad[0]))}: {name} is {values[bad[0]]}", phase="advantages")
