"""The shuffled order of documents or images in an epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def epoch_order(num_items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Returns the order, int64 [num_items], in which `epoch` visits the items of a set."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_items)
