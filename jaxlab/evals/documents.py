"""How well a model predicts held-out documents: in all, by document, and by place in them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlab.core import (
    RULES,
    Batch,
    Params,
    Rules,
    UsageError,
    View,
    batch_sharding,
    constrain,
    fetch_local_rows,
    gather,
    local_rows,
    make_mesh,
    owned_rows,
    place_rows,
    use_mesh,
)
from jaxlab.data import Prefetch
from jaxlab.objectives import token_nats


class HeldOut(Protocol):
    """Batches that hold every held-out document once; `jaxlab.data.Walk` is one."""

    @property
    def num_bytes(self) -> int:
        """Bytes of text that the targets of all batches stand for."""
        ...

    @property
    def num_words(self) -> int:
        """Words of that text, parted by whitespace."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentScores:
    """Negative log-likelihoods of held-out documents.

    Attributes:
      edges: int [n]; bin i holds the document positions from `edges[i]` up to below
        `edges[i + 1]`, the last one all from `edges[-1]` on.
      bin_nats: float64 [n], summed over the tokens of a bin.
      bin_counts: int64 [n], tokens in it.
      documents: int64 [d], numbers of the documents in their source, ascending.
      document_nats: float64 [d], summed over the tokens of each.
      document_counts: int64 [d], tokens of each.
      num_bytes: bytes of text that all the tokens stand for.
      num_words: words of that text, parted by whitespace as for PG-19; see `data.count_words`.
      marked_nats, marked_count: of the tokens that were marked, such as by `far_names`.
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
        """Tokens that were predicted, ends of documents included."""
        return int(self.document_counts.sum())

    @property
    def bits_per_byte(self) -> float:
        """What an ideal coder would need with this model, in bits per byte of text."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def word_perplexity(self) -> float:
        """exp(nats of all tokens / words of the text); NaN where the text has no words.

        The measure of PG-19 (arXiv 1911.05507, 2203.07852): whatever the tokens, the nats are
        spread over the same words, those that whitespace parts in the original text. The nats are
        of all predictions, those of spaces, line ends and ends of documents too. Beyond a float it
        is infinite.
        """
        return perplexity(self.nats, self.num_words)

    @property
    def loss_by_position(self) -> np.ndarray:
        """float64 [n], mean nats per token of each bin; NaN where it has none."""
        with np.errstate(invalid="ignore"):
            return self.bin_nats / np.where(self.bin_counts, self.bin_counts, np.nan)

    def bits_per_token(self, bins: slice = slice(None)) -> float:
        """Mean over the tokens of some of the bins; NaN where they have none."""
        count = self.bin_counts[bins].sum()
        return float(self.bin_nats[bins].sum() / count / math.log(2)) if count else math.nan

    @property
    def marked_bits_per_token(self) -> float:
        """Mean over the marked tokens; NaN where there are none."""
        return self.marked_nats / self.marked_count / math.log(2) if self.marked_count else math.nan


def perplexity(nats: float, count: float) -> float:
    """exp(nats / count); infinite beyond a float, NaN where `count` is 0.

    >>> round(perplexity(4.0 * math.log(3), 4), 9)
    3.0
    """
    if not count:
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nats) / count))


def doubling_edges(window: int, longest: int) -> tuple[int, ...]:
    """Bins [0, w), [w, 2w), [2w, 4w), ... that reach to a document of `longest` positions.

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
    view: View,
    params: Params,
    batches: HeldOut,
    *,
    init_carry: Callable[[int], Any],
    edges: Sequence[int] = (0,),
    before_segment: Callable[[Params, Any], Any] | None = None,
    marks: Mapping[int, np.ndarray] | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> DocumentScores:
    """Scores every document of a walk, with the carry going on from segment to segment.

    With several hosts each reads its rows of the walk, and all get the scores of all documents.

    Args:
      view: the model; called as `(tokens_bt, carry, start_bt) -> (logits_btv, carry)`. One view
        compiles once for one shape, however often it is evaluated.
      params: `{path: array}`.
      batches: a `Walk`. A batch has `inputs`, `targets`, `mask`, `start`, `position` and `index`,
        all [b, t] and all of one shape; b are the rows of this host, see `core.local_rows`.
      init_carry: makes the carry of so many rows.
      edges: where the bins of document positions begin, ascending from 0.
      before_segment: `(params, carry) -> carry`, applied before every batch: a control, such as
        one that takes the recurrent state away.
      marks: `{number of a document: bool [tokens]}`, tokens to be counted on their own as well;
        places beyond an array's end are not marked.
      mesh: the devices of `params`; by default all there are.
      rules: logical axis to mesh axes, for the activations.

    Raises:
      UsageError: edges that do not ascend from 0, or batches without a single token that counts.
    """
    edges = _checked(edges)
    mesh = make_mesh() if mesh is None else mesh
    bins, documents, marked = _Sums(), _Sums(), _Sums()
    change = jax.jit(before_segment) if before_segment is not None else lambda _, carry: carry
    carry = None
    with Prefetch(_Once(batches), transfer=_placed(mesh, rules)) as ahead, use_mesh(mesh, rules):
        for host, batch in ahead:
            if carry is None:
                carry = place_rows(init_carry(len(host["mask"])), batch_sharding(mesh, rules))
                owned = owned_rows(local_rows(len(batch["inputs"]), mesh, rules))
            nats_bt, carry = _score(view, rules, params, batch, change(params, carry))
            counted = host["mask"] & owned[:, None]
            nats = fetch_local_rows(nats_bt).astype(np.float64)[counted]
            place = np.searchsorted(edges, host["position"][counted], side="right") - 1
            bins.add(place, nats)
            documents.add(host["index"][counted], nats)
            at = _marked(marks or {}, host["index"][counted], host["position"][counted])
            marked.add(np.zeros(at.sum(), np.int64), nats[at])
    bins, documents, marked = (sums.over_processes() for sums in (bins, documents, marked))
    if not documents.counts.size:
        raise UsageError("no token counts in these batches; pass documents with text")
    kept = np.flatnonzero(documents.counts)
    size = len(edges)
    return DocumentScores(
        edges=edges,
        bin_nats=bins.nats_of(size),
        bin_counts=bins.counts_of(size),
        documents=kept,
        document_nats=documents.nats[kept],
        document_counts=documents.counts[kept],
        num_bytes=batches.num_bytes,
        num_words=batches.num_words,
        marked_nats=float(marked.nats.sum()),
        marked_count=int(marked.counts.sum()),
    )


def _marked(marks: Mapping[int, np.ndarray], index: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Which of the tokens [n] are marked."""
    found = np.zeros(len(index), bool)
    for number in np.unique(index):
        of_document = marks.get(int(number), np.zeros(0, bool))
        here = np.flatnonzero((index == number) & (position < len(of_document)))
        found[here] = of_document[position[here]]
    return found


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _score(
    view: View, rules: Rules, params: Params, batch: Batch, carry: Any
) -> tuple[jax.Array, Any]:
    """Nats [b, t] and the next carry. `rules` are those in force: one program for each of them."""
    logits_btv, carry = view.apply(params, batch["inputs"], carry, batch["start"])
    # Every host reads whole rows.
    return constrain(token_nats(logits_btv, batch["targets"]), "batch", None), carry


class _Sums:
    """Nats and counts by number, grown as numbers come; in float64, on the host."""

    def __init__(self) -> None:
        self.nats, self.counts = np.zeros(0), np.zeros(0, np.int64)

    def add(self, numbers: np.ndarray, nats: np.ndarray) -> None:
        size = max(len(self.nats), int(numbers.max(initial=-1)) + 1)
        self.nats = self.nats_of(size) + np.bincount(numbers, nats, size)
        self.counts = self.counts_of(size) + np.bincount(numbers, minlength=size)

    def over_processes(self) -> _Sums:
        """The sums of all hosts; all of them must call it."""
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
    """The batches of a walk as a stream that is read to its end and never restored."""

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


def _placed(mesh: Mesh, rules: Rules) -> Callable[[Any], tuple[Any, Batch]]:
    """A batch as it is, for the host, and what the model needs of it on the devices."""
    rows = batch_sharding(mesh, rules)

    def place(batch: Any) -> tuple[Any, Batch]:
        needed = {name: batch[name] for name in ("inputs", "targets", "start")}
        return batch, place_rows(needed, rows)

    return place


def _checked(edges: Sequence[int]) -> tuple[int, ...]:
    edges = tuple(int(edge) for edge in edges)
    if edges[:1] != (0,) or any(a >= b for a, b in zip(edges, edges[1:], strict=False)):
        raise UsageError(f"edges={edges}; expected positions that ascend from 0")
    return edges
