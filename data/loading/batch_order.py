"""Order of batches: a pure function of the step, so that a resumed run needs no other cursor."""

import numpy as np

from quadriga.data.errors import UserError


def batch_indices(step: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Return the row indices of one batch, `batch_size` of them; `step` counts from 0.

    Rows are shuffled afresh every epoch from (seed, epoch). A batch may cross the border of two epochs: each epoch
    holds every row exactly once, and no row is dropped at its end. Raises UserError when there are no rows.
    """
    if rows < 1:
        raise UserError("There are no rows to take a batch from. Check the paths under `data:` and the skipped rows.")
    first = step * batch_size
    picked: list[int] = []
    while len(picked) < batch_size:
        epoch, offset = divmod(first + len(picked), rows)
        order = np.random.default_rng([seed % 2**64, epoch]).permutation(rows)
        picked += order[offset : offset + batch_size - len(picked)].tolist()
    return picked


def hash_seed(*parts: int) -> int:
    """Return one seed that depends on several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
