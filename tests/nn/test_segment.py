from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxlab.nn import Segment


def test_documents_are_numbered_from_the_one_going_on():
    start = jnp.array([[0, 0, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    segment = Segment.of(start, jnp.array([3, 8]))
    np.testing.assert_array_equal(segment.doc_bt, [[0, 0, 1, 1, 2], [1, 1, 1, 1, 1]])


def test_memory_reaches_back_to_the_documents_start():
    segment = Segment.of(jnp.zeros((3, 2), bool), jnp.array([0, 2, 9]))
    np.testing.assert_array_equal(
        segment.remembered(4), [[-1, -1, -1, -1], [-1, -1, 0, 0], [0, 0, 0, 0]]
    )


def test_length_counts_the_last_document_over_segments():
    start = np.random.default_rng(0).random((4, 12)) > 0.8
    length, counted = jnp.zeros(4, jnp.int32), np.zeros(4, int)
    for part in np.split(start, 3, axis=1):
        length = Segment.of(jnp.asarray(part), length).length_after()
        for t in range(part.shape[1]):
            counted = np.where(part[:, t], 1, counted + 1)
        np.testing.assert_array_equal(length, counted)


def test_a_token_knows_how_old_its_document_is():
    start = jnp.array([[0, 0, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    segment = Segment.of(start, jnp.array([3, 8]))
    np.testing.assert_array_equal(segment.ages(), [[3, 4, 0, 1, 0], [0, 1, 2, 3, 4]])
