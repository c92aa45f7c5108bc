"""Two models on the same documents: their difference, and its interval."""

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
    """Bits per byte of `a` minus those of `b`: below 0 where `a` predicts better.

    The 95% interval comes from a paired bootstrap over documents: documents are drawn with
    replacement, each with the nats of both models, since documents differ far more than models do.
    It tells how the difference would vary over other held-out documents of the same kind, not over
    other training seeds.

    Args:
      a, b: scores of the same documents.
      num_samples: number of bootstrap samples.
      seed: seed of the samples.

    Raises:
      UsageError: scores of different documents.
    """
    _require_same_documents(a, b)
    # A walk counts only the bytes of all documents together; share them in proportion to tokens.
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
    """Perplexity per word of `a` minus that of `b`: below 0 where `a` predicts better.

    The interval comes from the same paired bootstrap as in `bits_per_byte_difference`.

    Args:
      a, b: scores of the same documents.
      num_samples: number of bootstrap samples.
      seed: seed of the samples.

    Raises:
      UsageError: scores of different documents, or documents without words.
    """
    _require_same_documents(a, b)
    if not a.num_words:
        raise UsageError("the documents have no words; compare bits per byte")
    # Words in proportion to tokens, as bytes above.
    words = a.document_counts * (a.num_words / a.num_tokens)

    def difference(drawn: np.ndarray) -> float:
        count = words[drawn].sum()
        perplexity_a, perplexity_b = (
            perplexity(s.document_nats[drawn].sum(), count) for s in (a, b)
        )
        return perplexity_a - perplexity_b

    return bootstrap(difference, len(words), num_samples, seed)


def mean_scores(scores: Sequence[DocumentScores]) -> DocumentScores:
    """Averages the scores of several seeds of one model on the same documents.

    Raises:
      UsageError: no scores, or scores of different documents.
    """
    if not scores:
        raise UsageError("no scores to average; give those of at least one seed")
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
