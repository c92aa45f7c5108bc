"""The order in which an epoch reads what there is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def epoch_order(num_items: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Returns the order int64 [num_items] in which `epoch` reads documents or images."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_items)
