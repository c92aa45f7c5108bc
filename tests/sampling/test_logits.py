from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.sampling import Sampler, filter_logits

LOGITS = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)


def filtered(logits, temperature, top_k, top_p):
    """The same, one row at a time, by sorting."""
    out = np.full(logits.shape, -np.inf)
    for row, kept in zip(logits / temperature, out, strict=True):
        order = np.argsort(-row)[:top_k]
        if top_p is not None:
            shares = np.exp(row[order]) / np.exp(row[order]).sum()
            order = order[: np.searchsorted(np.cumsum(shares), top_p) + 1]
        kept[order] = row[order]
    return out


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 12])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.9])
def test_filter_equals_sorting_row_by_row(temperature, top_k, top_p):
    got = filter_logits(jnp.asarray(LOGITS), temperature, top_k, top_p)
    np.testing.assert_allclose(got, filtered(LOGITS, temperature, top_k, top_p), rtol=1e-5)


def test_the_whole_nucleus_and_too_many_keep_every_token():
    np.testing.assert_array_equal(filter_logits(jnp.asarray(LOGITS), 1.0, 99, 1.0), LOGITS)


def test_ties_at_the_border_are_kept():
    got = filter_logits(jnp.array([1.0, 2.0, 1.0, 0.0]), top_k=2)
    np.testing.assert_array_equal(got, [1, 2, 1, -np.inf])


def test_draws_follow_the_filtered_distribution():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1])), (20000, 4))
    drawn = Sampler(1.0, top_k=3).draw(logits, jax.random.key(0))
    shares = np.bincount(drawn, minlength=4) / 20000
    np.testing.assert_allclose(shares, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0], atol=0.02)


def test_zero_temperature_takes_the_likeliest_valid_token():
    logits = jnp.array([[0.0, 2.0, 1.0, 9.0], [3.0, 2.0, 1.0, 9.0]])
    drawn = Sampler(0.0, num_valid=3).draw(logits, jax.random.key(0))
    assert drawn.tolist() == [1, 0] and drawn.dtype == jnp.int32


def test_invalid_ids_are_never_drawn():
    drawn = Sampler(num_valid=3).draw(jnp.zeros((500, 8)).at[:, 5].set(50), jax.random.key(0))
    assert set(np.asarray(drawn).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must lie in"),
        ({"top_p": 1.5}, "top_p=1.5 must lie in"),
        ({"top_k": 0}, "top_k=0 must lie in 1..12"),
        ({"num_valid": 13}, "num_valid=13 must lie in 1..12"),
    ],
)
def test_numbers_out_of_range_are_refused(kwargs, message):
    with pytest.raises(UsageError, match=message):
        Sampler(**kwargs).check(12)
