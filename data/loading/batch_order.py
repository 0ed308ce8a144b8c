"""Which rows a step trains on: a pure function, so that a resumed run needs no cursor but its step."""

import numpy as np

from quadriga.data.errors import UserError


def batch_indices(step: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Row indices of one batch, `batch_size` of them.

    Rows are shuffled afresh every epoch from (seed, epoch). Batches run on over the border of two epochs: each epoch
    holds every row exactly once, none is dropped at its end.
    step: from 0. Raises UserError when there are no rows.
    """
    if rows < 1:
        raise UserError("There are no rows to take a batch from. Check the paths under `data:` and what was skipped.")
    first = step * batch_size
    picked: list[int] = []
    while len(picked) < batch_size:
        epoch, offset = divmod(first + len(picked), rows)
        order = np.random.default_rng([seed % 2**64, epoch]).permutation(rows)
        picked += order[offset : offset + batch_size - len(picked)].tolist()
    return picked


def hash_seed(*parts: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
