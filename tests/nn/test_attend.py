from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.nn import attend
from jaxlab.nn.decode import attend_one
from jaxlab.nn.tiles import MASKED, Readable, attend_blocks, attend_heads, tile_size


def softmax_attention(q, k, v, seen):
    """Float64 attention [..., t, k] over the keys [..., s, k] that are seen; zero without any."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.where(seen, q @ np.swapaxes(k, -1, -2), -np.inf)
    weights = np.exp(logits - np.maximum(logits.max(-1, keepdims=True), -1e9))
    return weights @ v / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_head_equals_a_softmax_over_what_is_seen(dtype):
    q, k, v = numbers(5, 4), numbers(7, 4, seed=1), numbers(7, 4, seed=2)
    seen = np.random.default_rng(3).random((5, 7)) > 0.4
    seen[2] = False
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    got = attend(q, k, v, seen_st=jnp.asarray(seen.T))
    assert got.dtype == dtype
    want = softmax_attention(q, k, v, seen)
    np.testing.assert_allclose(got, want, atol=1e-6 if dtype == jnp.float32 else 2e-2)


def test_a_fully_hidden_row_gives_zero_and_no_gradient():
    q, k, v = numbers(2, 4), numbers(3, 4, seed=1), numbers(3, 4, seed=2)
    bias = jnp.array([[0.0] * 3, [MASKED] * 3])
    got, pull = jax.vjp(lambda *x: attend(*x, bias.T), q, k, v)
    assert (got[1] == 0).all() and (got[0] != 0).all()
    grads = pull(jnp.ones_like(got).at[0].set(0))
    assert all((grad == 0).all() for grad in grads)


def test_large_logits_do_not_overflow():
    q, k, v = 1e4 * numbers(2, 4), numbers(3, 4, seed=1), numbers(3, 4, seed=2)
    np.testing.assert_allclose(attend(q, k, v), softmax_attention(q, k, v, True), atol=1e-6)


def test_heads_in_tiles_equal_one_softmax():
    q, k, v = numbers(2, 3, 8, 4), numbers(2, 3, 5, 4, seed=1), numbers(2, 3, 5, 4, seed=2)
    seen = np.random.default_rng(3).random((3, 5)) > 0.4
    bias = jnp.where(seen, 0.0, MASKED)
    got = jax.jit(attend_heads)(q, k, v, bias)
    np.testing.assert_allclose(got, softmax_attention(q, k, v, seen[None, :, None]), atol=1e-5)


def test_one_query_of_a_ring_equals_heads_that_share_keys():
    q, k, v = numbers(3, 4, 5), numbers(3, 2, 6, 5, seed=1), numbers(3, 2, 6, 5, seed=2)
    seen = np.random.default_rng(3).random((3, 4, 6)) > 0.4
    got = attend_one(q, k, v, jnp.where(seen, 0.0, MASKED))
    shared = (np.repeat(x, 2, axis=1) for x in (k, v))
    want = softmax_attention(q[:, :, None], *shared, seen[:, :, None])[:, :, 0]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_blocks_see_one_window_of_their_own_document():
    h, n, j, w, k = 2, 1, 3, 4, 5
    q, keys = numbers(h, n, j, w, k), numbers(h, n, j + 1, w, k, seed=1)
    values = numbers(h, n, j + 1, w, k, seed=2)
    doc_s = np.array([0] * 6 + [1] * 5 + [2] * 5)[None]
    size = tile_size(w)
    distances = w + np.arange(size)[:, None] - np.arange(w + size)[None]
    bias = np.where((distances >= 1) & (distances <= w), 0.0, MASKED)
    bias = np.broadcast_to(bias.T, (h, *bias.T.shape))
    doc_njs = doc_s.reshape(n, j + 1, w)
    before = Readable(keys[:, :, 0], values[:, :, 0], doc_njs[:, 0])
    blocks = Readable(keys[:, :, 1:], values[:, :, 1:], doc_njs[:, 1:])
    got = jax.jit(attend_blocks)(q, blocks, before, bias)
    t, s = np.arange(w, 4 * w)[:, None], np.arange(4 * w)[None]
    seen = (t - s >= 1) & (t - s <= w) & (doc_s[0, w:, None] == doc_s[0, None])
    flat = (x.reshape(h, n, -1, k) for x in (q, keys, values))
    np.testing.assert_allclose(got.reshape(h, n, -1, k), softmax_attention(*flat, seen), atol=1e-5)


def test_a_batch_for_several_devices_equals_one_device(monkeypatch):
    h, n, j, w, k = 2, 3, 2, 4, 5
    q, keys = numbers(h, n, j, w, k), numbers(h, n, j + 1, w, k, seed=1)
    values, bias = numbers(h, n, j + 1, w, k, seed=2), numbers(h, 2 * w, w, seed=3)
    docs = np.array([[0] * 12, [0] * 6 + [1] * 6, [-1] * 4 + [0] * 8]).reshape(n, j + 1, w)

    def run(q, keys, values, bias):
        before = Readable(keys[:, :, 0], values[:, :, 0], docs[:, 0])
        blocks = Readable(keys[:, :, 1:], values[:, :, 1:], docs[:, 1:])
        hidden = jnp.where(docs[:, 1] == 0, 0.0, MASKED)
        heads = attend_heads(q[:, :, 0], keys[:, :, 1], values[:, :, 1], hidden)
        return jnp.sin(attend_blocks(q, blocks, before, bias)).sum() + jnp.cos(heads).sum()

    gradients = jax.value_and_grad(run, argnums=(0, 1, 2, 3))
    one = jax.jit(lambda *args: gradients(*args))(q, keys, values, bias)
    monkeypatch.setattr("jaxlab.nn.tiles.on_one_cpu_device", lambda: False)
    several = jax.jit(lambda *args: gradients(*args))(q, keys, values, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, several)
