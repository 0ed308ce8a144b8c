"""Whitening: rewards or advantages scaled to variance 1 over a whole batch."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def whiten(values: ArrayLike, shift_mean: bool = True) -> NDArray[np.float64]:
    """Scale values to variance 1 (biased: divided by the count) over all values given: the whole batch of all ranks.

    shift_mean: also move the mean to 0; otherwise the mean stays where it is (Ziegler et al. 2019 whiten rewards so).
    """
    values = np.asarray(values, np.float64)
    mean = values.mean()
    scaled = (values - mean) / np.sqrt(values.var() + 1e-8)
    return scaled if shift_mean else scaled + mean
