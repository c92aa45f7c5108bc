"""How well a model predicts held-out documents: overall, per document, and by position."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from jaxlab.core import (
    Batch,
    Rules,
    UsageError,
    View,
    batch_sharding,
    constrain,
    fetch_local_rows,
    gather,
    owned_rows,
    place_rows,
    use_mesh,
)
from jaxlab.data import Prefetch
from jaxlab.evals.placed import Placed
from jaxlab.objectives import token_nats


class HeldOut(Protocol):
    """Batches that contain every held-out document once, such as a `jaxlab.data.Walk`."""

    @property
    def num_bytes(self) -> int:
        """Bytes of text that the targets of all batches stand for."""
        ...

    @property
    def num_words(self) -> int:
        """Words of that text, separated by whitespace."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentScores:
    """Negative log-likelihoods of held-out documents.

    Attributes:
      edges: int [n]; bin i holds the document positions from `edges[i]` to just below
        `edges[i + 1]`, the last bin all positions from `edges[-1]` on.
      bin_nats: float64 [n], the sum over the tokens of each bin.
      bin_counts: int64 [n], tokens in each bin.
      documents: int64 [d], numbers of the documents in their source, ascending.
      document_nats: float64 [d], the sum over the tokens of each document.
      document_counts: int64 [d], tokens of each document.
      num_bytes: bytes of text that all the tokens stand for.
      num_words: words of that text, separated by whitespace as for PG-19; see `data.count_words`.
      marked_nats, marked_count: those of the marked tokens, for example by `far_names`.
    """

    edges: tuple[int, ...]
    bin_nats: np.ndarray
    bin_counts: np.ndarray
    documents: np.ndarray
    document_nats: np.ndarray
    document_counts: np.ndarray
    num_bytes: int
    num_words: int
    marked_nats: float = 0.0
    marked_count: int = 0

    @property
    def nats(self) -> float:
        """Nats of all documents together."""
        return float(self.document_nats.sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that were predicted, including the ends of documents."""
        return int(self.document_counts.sum())

    @property
    def bits_per_byte(self) -> float:
        """What an ideal coder needs with this model, in bits per byte of text."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def word_perplexity(self) -> float:
        """exp(nats of all tokens / words of the text); NaN if the text has no words.

        The measure of PG-19 (arXiv 1911.05507, 2203.07852): whatever the tokens are, the nats are
        divided by the number of words that whitespace separates in the original text. All
        predictions count, including those of spaces, line ends and ends of documents. It is
        infinite where a float overflows.
        """
        return perplexity(self.nats, self.num_words)

    @property
    def loss_by_position(self) -> np.ndarray:
        """float64 [n], mean nats per token of each bin; NaN for an empty bin."""
        with np.errstate(invalid="ignore"):
            return self.bin_nats / np.where(self.bin_counts, self.bin_counts, np.nan)

    def bits_per_token(self, bins: slice = slice(None)) -> float:
        """Mean over the tokens of some of the bins; NaN if they are empty."""
        count = self.bin_counts[bins].sum()
        return float(self.bin_nats[bins].sum() / count / math.log(2)) if count else math.nan

    @property
    def marked_bits_per_token(self) -> float:
        """Mean over the marked tokens; NaN if there are none."""
        return self.marked_nats / self.marked_count / math.log(2) if self.marked_count else math.nan


def perplexity(nats: float, count: float) -> float:
    """exp(nats / count); infinite where a float overflows, NaN if `count` is 0.

    >>> round(perplexity(4.0 * math.log(3), 4), 9)
    3.0
    """
    if not count:
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nats) / count))


def doubling_edges(window: int, longest: int) -> tuple[int, ...]:
    """Edges of the bins [0, w), [w, 2w), [2w, 4w), ... for documents of up to `longest` positions.

    >>> doubling_edges(128, 1024)
    (0, 128, 256, 512)
    """
    if window < 1:
        raise UsageError(f"window={window}; expected the width of the first bin, 1 or more")
    edges = [0]
    while not edges[1:] or 2 * edges[-1] < longest:
        edges.append(max(2 * edges[-1], window))
    return tuple(edges)


def evaluate_documents(
    view: View | nnx.Module,
    batches: HeldOut,
    *,
    init_carry: Callable[[int], Any],
    edges: Sequence[int] = (0,),
    before_segment: Callable[[View, Any], Any] | None = None,
    marks: Mapping[int, np.ndarray] | None = None,
) -> DocumentScores:
    """Scores every document of a walk; the carry goes from segment to segment.

    The model runs in evaluation mode on the devices of its parameters, in one program for all
    trainings of one config. With several processes each reads its rows of the walk, and all get the
    scores of all documents.

    Args:
      view: the model or its view; called as `(tokens_bt, carry, start_bt) -> (logits_btv, carry)`.
      batches: a `Walk`. A batch has `inputs`, `targets`, `mask`, `start`, `position` and `index`,
        all [b, t] and of one shape; b are the rows of this process, see `core.local_rows`.
      init_carry: makes the carry for a number of rows.
      edges: where the bins of document positions begin, ascending from 0.
      before_segment: `(view, carry) -> carry`, applied before every batch: a control, for example
        one that resets the recurrent state.
      marks: `{number of a document: bool [tokens]}`, tokens that are also counted separately;
        tokens beyond the end of an array are not marked.

    Raises:
      UsageError: not a model, or a view without arrays; edges that do not ascend from 0; batches
        without a token that counts.
    """
    edges = _checked(edges)
    model = Placed.of(view)
    bins, documents, marked = _Sums(), _Sums(), _Sums()
    change = jax.jit(before_segment) if before_segment is not None else None
    carry = None

    def transfer(batch: Any) -> tuple[Any, Batch]:
        return batch, model.place({name: batch[name] for name in ("inputs", "targets", "start")})

    with Prefetch(_Once(batches), transfer=transfer) as ahead:
        for host_batch, batch in ahead:
            if carry is None:
                sharding = batch_sharding(model.mesh, model.rules)
                carry = place_rows(init_carry(len(host_batch["mask"])), sharding)
                owned = owned_rows(model.rows(len(batch["inputs"])))
            if change is not None:
                with use_mesh(model.mesh, model.rules):
                    carry = change(model.view, carry)
            nats_bt, carry = model.run(_score, batch, carry)
            counted = host_batch["mask"] & owned[:, None]
            nats = fetch_local_rows(nats_bt).astype(np.float64)[counted]
            place = np.searchsorted(edges, host_batch["position"][counted], side="right") - 1
            bins.add(place, nats)
            documents.add(host_batch["index"][counted], nats)
            at = _marked(marks or {}, host_batch["index"][counted], host_batch["position"][counted])
            marked.add(np.zeros(at.sum(), np.int64), nats[at])
    bins, documents, marked = (sums.over_processes() for sums in (bins, documents, marked))
    if not documents.counts.size:
        raise UsageError("no token counts in these batches; pass documents with text")
    numbers = np.flatnonzero(documents.counts)
    size = len(edges)
    return DocumentScores(
        edges=edges,
        bin_nats=bins.nats_of(size),
        bin_counts=bins.counts_of(size),
        documents=numbers,
        document_nats=documents.nats[numbers],
        document_counts=documents.counts[numbers],
        num_bytes=batches.num_bytes,
        num_words=batches.num_words,
        marked_nats=float(marked.nats.sum()),
        marked_count=int(marked.counts.sum()),
    )


def _marked(marks: Mapping[int, np.ndarray], index: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Which of the tokens [n] are marked."""
    is_marked = np.zeros(len(index), bool)
    for number in np.unique(index):
        of_document = marks.get(int(number), np.zeros(0, bool))
        here = np.flatnonzero((index == number) & (position < len(of_document)))
        is_marked[here] = of_document[position[here]]
    return is_marked


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _score(rules: Rules, view: View, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
    """Nats [b, t] and the next carry."""
    logits_btv, carry = view(batch["inputs"], carry, batch["start"])
    # Every process reads whole rows.
    return constrain(token_nats(logits_btv, batch["targets"]), "batch", None), carry


class _Sums:
    """Nats and counts by number, which grow as new numbers come; in float64, on the host."""

    def __init__(self) -> None:
        self.nats, self.counts = np.zeros(0), np.zeros(0, np.int64)

    def add(self, numbers: np.ndarray, nats: np.ndarray) -> None:
        size = max(len(self.nats), int(numbers.max(initial=-1)) + 1)
        self.nats = self.nats_of(size) + np.bincount(numbers, nats, size)
        self.counts = self.counts_of(size) + np.bincount(numbers, minlength=size)

    def over_processes(self) -> _Sums:
        """The sums over all processes; all of them must call it."""
        total = _Sums()
        for nats, counts in gather([self.nats.tolist(), self.counts.tolist()]):
            size = max(len(total.nats), len(nats))
            total.nats, total.counts = total.nats_of(size), total.counts_of(size)
            total.nats[: len(nats)] += nats
            total.counts[: len(counts)] += np.array(counts, np.int64)
        return total

    def nats_of(self, size: int) -> np.ndarray:
        return np.pad(self.nats, (0, size - len(self.nats)))

    def counts_of(self, size: int) -> np.ndarray:
        return np.pad(self.counts, (0, size - len(self.counts)))


class _Once:
    """The batches of a walk as a stream that is read once and never restored."""

    def __init__(self, batches: Iterable[Any]):
        self._batches = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("an evaluation reads its batches once")


def _checked(edges: Sequence[int]) -> tuple[int, ...]:
    edges = tuple(int(edge) for edge in edges)
    if edges[:1] != (0,) or any(a >= b for a, b in zip(edges, edges[1:], strict=False)):
        raise UsageError(f"edges={edges}; expected positions that ascend from 0")
    return edges
