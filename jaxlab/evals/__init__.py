"""Evaluations: protocols that turn a trained model and held-out data into scores."""

from __future__ import annotations

from jaxlab.evals.compression import xz_bits_per_byte as xz_bits_per_byte
from jaxlab.evals.documents import DocumentScores as DocumentScores
from jaxlab.evals.documents import doubling_edges as doubling_edges
from jaxlab.evals.documents import evaluate_documents as evaluate_documents
from jaxlab.evals.names import far_names as far_names
from jaxlab.evals.paired import Interval as Interval
from jaxlab.evals.paired import bits_per_byte_difference as bits_per_byte_difference
from jaxlab.evals.paired import mean_over_seeds as mean_over_seeds
from jaxlab.evals.paired import mean_scores as mean_scores
from jaxlab.evals.paired import word_perplexity_difference as word_perplexity_difference
from jaxlab.evals.recall import accuracy_by_block as accuracy_by_block

__all__ = [
    "DocumentScores", "Interval", "accuracy_by_block", "bits_per_byte_difference",
    "doubling_edges", "evaluate_documents", "far_names", "mean_over_seeds", "mean_scores",
    "word_perplexity_difference", "xz_bits_per_byte",
]
