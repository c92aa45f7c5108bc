"""Two models on the same documents: their difference, and how sure it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxlab.analysis import Interval, bootstrap, mean_over_seeds
from jaxlab.core import UsageError
from jaxlab.evals.documents import DocumentScores, perplexity


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
    _require_same_documents(a, b)
    # Bytes of a document in proportion to its tokens: a walk counts only those of all documents.
    size = a.document_counts * (a.num_bytes / a.num_tokens) * math.log(2)
    nats = a.document_nats - b.document_nats

    def difference(drawn: np.ndarray) -> float:
        return nats[drawn].sum() / size[drawn].sum()

    return bootstrap(difference, len(size), num_samples, seed)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two models on the same documents, with one score for each seed: below 0 the first is ahead.

    Attributes:
      documents: of the mean over seeds, with its interval over documents.
      seeds: the mean over paired seeds, with its interval; None with one seed.
    """

    documents: Interval
    seeds: Interval | None

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole of each interval is."""
        return max(i.high for i in (self.documents, self.seeds) if i is not None) < 0

    def __str__(self) -> str:
        if self.seeds is None:
            return str(self.documents)
        return f"{self.documents} over documents, {self.seeds} over seeds"


def bits_per_byte_over_seeds(
    a: Sequence[DocumentScores], b: Sequence[DocumentScores]
) -> Difference:
    """Bits per byte of `a` less those of `b`, each with one score for each seed.

    Raises:
      UsageError: no scores, or scores of different documents.
    """
    documents = bits_per_byte_difference(mean_scores(a), mean_scores(b))
    if len(a) == 1:
        return Difference(documents, None)
    pairs = zip(a, b, strict=True)
    return Difference(
        documents, mean_over_seeds([x.bits_per_byte - y.bits_per_byte for x, y in pairs])
    )


def word_perplexity_difference(
    a: DocumentScores, b: DocumentScores, *, num_samples: int = 10_000, seed: int = 0
) -> Interval:
    """Perplexity by word of `a` less that of `b`: below 0 where `a` predicts better.

    The interval is of the paired bootstrap of `bits_per_byte_difference`, and says as much.

    Args:
      a, b: scores of the same documents.
      num_samples: bootstrap samples.
      seed: of the samples.

    Raises:
      UsageError: scores of different documents, or documents without words.
    """
    _require_same_documents(a, b)
    if not a.num_words:
        raise UsageError("the documents have no words; compare bits per byte")
    # Words of a document in proportion to its tokens, as bytes above.
    words = a.document_counts * (a.num_words / a.num_tokens)

    def difference(drawn: np.ndarray) -> float:
        count = words[drawn].sum()
        of_a, of_b = (perplexity(s.document_nats[drawn].sum(), count) for s in (a, b))
        return of_a - of_b

    return bootstrap(difference, len(words), num_samples, seed)


def mean_scores(scores: Sequence[DocumentScores]) -> DocumentScores:
    """The scores of several seeds of one model on the same documents, averaged.

    Raises:
      UsageError: no scores, or scores of different documents.
    """
    if not scores:
        raise UsageError("no scores to average; give those of one seed or more")
    for other in scores[1:]:
        _require_same_documents(scores[0], other)

    def mean(name: str) -> np.ndarray:
        return np.mean([getattr(score, name) for score in scores], axis=0)

    return dataclasses.replace(
        scores[0],
        bin_nats=mean("bin_nats"),
        document_nats=mean("document_nats"),
        marked_nats=float(mean("marked_nats")),
    )


def _require_same_documents(a: DocumentScores, b: DocumentScores) -> None:
    same = np.array_equal(a.documents, b.documents)
    if not same or not np.array_equal(a.document_counts, b.document_counts):
        raise UsageError(
            f"scores of {len(a.documents)} and {len(b.documents)} documents that are not the same; "
            "evaluate both models on one walk"
        )
