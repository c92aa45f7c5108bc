"""Two models on the same documents: their difference, and how sure it is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxlab.core import UsageError
from jaxlab.evals.documents import DocumentScores


class Interval(NamedTuple):
    """An estimate and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def bits_per_byte_difference(
    a: DocumentScores, b: DocumentScores, *, num_samples: int = 10_000, seed: int = 0
) -> Interval:
    """Bits per byte of `a` less those of `b`: below 0 where `a` predicts better.

    The 95% interval is of a paired bootstrap over documents: documents are drawn with replacement,
    each with the nats of both models, since documents differ from one another far more than models
    do. It says how the difference would vary over other held-out documents of the kind, not over
    other seeds of the training.

    Args:
      a, b: scores of the same documents.
      num_samples: bootstrap samples.
      seed: of the samples.

    Raises:
      UsageError: scores of different documents.
    """
    same = np.array_equal(a.documents, b.documents)
    if not same or not np.array_equal(a.document_counts, b.document_counts):
        raise UsageError(
            f"scores of {len(a.documents)} and {len(b.documents)} documents that are not the same; "
            "evaluate both models on one walk"
        )
    # Bytes of a document in proportion to its tokens: a walk counts only those of all documents.
    size = a.document_counts * (a.num_bytes / a.num_tokens) * math.log(2)
    nats = a.document_nats - b.document_nats
    rng = np.random.Generator(np.random.PCG64(seed))

    def sample() -> float:
        drawn = rng.integers(len(nats), size=len(nats))
        return nats[drawn].sum() / size[drawn].sum()

    samples = [sample() for _ in range(num_samples)]
    low, high = np.quantile(samples, (0.025, 0.975))
    return Interval(float(nats.sum() / size.sum()), float(low), float(high))
