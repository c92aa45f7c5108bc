"""Held-out documents, opened once and read by every model of a comparison."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlab.core import (
    RULES,
    MeshConfig,
    Rules,
    View,
    batch_sharding,
    local_rows,
    make_mesh,
    place_rows,
)
from jaxlab.data import Source, Tokenizer, Walk, walk
from jaxlab.evals.compression import evaluated_texts, xz_bits_per_byte
from jaxlab.evals.documents import DocumentScores, doubling_edges, evaluate_documents
from jaxlab.evals.names import far_names


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutText:
    """Documents to score, each from its start, with positions in bins and far names marked.

    Attributes:
      walk: the documents in batches.
      texts: what is scored of each document, as bytes.
      edges: where the bins of positions begin: 0, w, 2w, 4w, ... for a window w.
      names: marked tokens of each document; see `far_names`.
      reach: tokens that attention reaches back; names last mentioned further back are marked.
    """

    walk: Walk
    texts: list[bytes]
    edges: tuple[int, ...]
    names: Mapping[int, np.ndarray]
    reach: int

    @classmethod
    def of(
        cls,
        documents: Source,
        tokenizer: Tokenizer,
        *,
        window: int,
        reach: int,
        batch_size: int,
        segment_length: int,
        mesh: Mesh,
        rules: Rules = RULES,
        max_document_tokens: int | None = None,
    ) -> HeldOutText:
        """Tokenises the documents and plans how they are read.

        Args:
          documents: the source.
          tokenizer: that of the models.
          window: documents start at multiples of it; the width of the first bin of positions.
          reach: see above.
          batch_size: rows over all devices.
          segment_length: positions of a row in one batch.
          mesh: the devices of the models.
          rules: logical axis to mesh axes.
          max_document_tokens: how many first tokens of each document are scored; None: all.

        Raises:
          UsageError: sizes that do not fit each other or the devices, or no document with text.
        """
        planned = walk(
            documents,
            tokenizer,
            batch_size=batch_size,
            segment_length=segment_length,
            align=window,
            max_document_tokens=max_document_tokens,
            rows=local_rows(batch_size, mesh, rules),
        )
        texts = evaluated_texts(documents, tokenizer, max_document_tokens)
        names = far_names(documents, tokenizer, reach, max_document_tokens=max_document_tokens)
        edges = doubling_edges(window, max(map(len, texts)))
        return cls(planned, texts, edges, names, reach)

    def score(
        self, view: View, before_segment: Callable[[View, Any], Any] | None = None
    ) -> DocumentScores:
        """The scores of a model whose `init_carry(rows)` makes its carry.

        Args:
          view: the trained model.
          before_segment: `(view, carry) -> carry`, a control; see `evaluate_documents`.
        """
        return evaluate_documents(
            view,
            self.walk,
            init_carry=lambda rows: view.apply(view.params, rows, method="init_carry"),
            edges=self.edges,
            marks=self.names,
            before_segment=before_segment,
        )

    @functools.lru_cache(maxsize=1)  # noqa: B019  one text lives as long as its study
    def first_segments(self, mesh: MeshConfig) -> dict[str, jax.Array]:
        """The first batch on the devices of a mesh: `inputs` int32 and `start` bool, [b, t]."""
        first = next(iter(self.walk))
        rows = batch_sharding(make_mesh(mesh))
        wanted: dict[str, Any] = {name: first[name] for name in ("inputs", "start")}
        return place_rows(wanted, rows)

    def xz_bits_per_byte(self) -> float:
        """What `xz -9e` needs for the same texts, each on its own."""
        return xz_bits_per_byte(self.texts)


def scores_to_json(scores: DocumentScores) -> dict[str, Any]:
    """Scores as plain JSON; `scores_from_json` is the inverse."""
    values = {f.name: getattr(scores, f.name) for f in dataclasses.fields(scores)}
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}


def scores_from_json(values: Mapping[str, Any]) -> DocumentScores:
    """The inverse of `scores_to_json`."""
    arrays: dict[str, Any] = {
        n: np.array(v) if isinstance(v, list) else v for n, v in values.items()
    }
    return DocumentScores(**{**arrays, "edges": tuple(values["edges"])})
