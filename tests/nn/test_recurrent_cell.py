from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.nn import BlockRecurrentCell, KeySet
from jaxlab.nn.tiles import MASKED

B, R, D, H, K, S = 2, 3, 8, 2, 4, 6


@pytest.fixture(scope="module")
def cell():
    return BlockRecurrentCell(D, R, H, K, head_scale=3.0, rngs=nnx.Rngs(0))


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    c, k, v = (rng.normal(size=s).astype(np.float32) for s in ((B, R, D), *[(H, B, S, K)] * 2))
    return c, k / np.linalg.norm(k, axis=3, keepdims=True), v, np.zeros((B, S), np.float32)


def with_bias(cell, value):
    graph, params = nnx.split(cell)
    params = jax.tree.map(lambda x: x, params)
    params["update"]["gate"]["bias"][...] = jnp.full((D,), value)
    return nnx.merge(graph, params)


@jax.jit
def run(cell, c, k, v, bias):
    tokens = KeySet((k.transpose(1, 2, 0, 3),), (v.transpose(1, 2, 0, 3),), (False,))
    return cell(c, tokens, bias)


def dense(cell, c, k_tokens, v_tokens, seen):
    """One block in float64, by the equations of the fact sheet."""
    c = np.asarray(c, np.float64)
    size = np.sqrt(np.square(c).mean(-1, keepdims=True) + 1e-6)
    cn = c / size * np.asarray(cell.norm.scale[...]) + np.asarray(cell.ids[...])

    def unit(x):
        return x / np.sqrt(np.square(x).sum(-1, keepdims=True) + 1e-6)

    def heads(layer):
        return np.einsum("brd,dhk->bhrk", cn, np.asarray(layer.kernel[...], np.float64))

    def read(q, scale, k, v, seen):
        logits = np.abs(np.asarray(scale[...]))[:, None, None] * (unit(q) @ k.swapaxes(-1, -2))
        weights = np.where(seen, np.exp(logits), 0)
        return weights / weights.sum(-1, keepdims=True) @ v

    own = read(heads(cell.query), cell.scale, unit(heads(cell.key)), heads(cell.value), True)
    k, v = (x.transpose(1, 0, 2, 3) for x in (k_tokens, v_tokens))
    tokens = read(heads(cell.token_query), cell.token_scale, k, v, seen[:, None, None])
    both = np.concatenate([own, tokens], axis=1)
    z = np.einsum("bhrk,hkd->brd", both, np.asarray(cell.update.output.kernel[...], np.float64))
    gate = 1 / (1 + np.exp(-np.asarray(cell.update.gate.bias[...], np.float64)))
    return c * gate + z * (1 - gate)


def test_one_block_equals_the_equations(cell):
    c, k, v, bias = inputs()
    bias[0, :2] = bias[1, 5:] = MASKED
    got, (keys, values) = run(cell, c, k, v, bias)
    np.testing.assert_allclose(got, dense(cell, c, k, v, bias == 0), atol=1e-5)
    for ours, same in zip((keys, values), cell.keys_values(c), strict=True):
        assert ours.shape == (B, R, H, K)
        np.testing.assert_allclose(ours, same, atol=1e-6)


def test_gate_keeps_mixes_and_replaces_the_state(cell):
    args = inputs()
    kept, mixed, replaced = (run(with_bias(cell, bias), *args)[0] for bias in (20.0, 0.0, -20.0))
    np.testing.assert_allclose(kept, args[0], atol=1e-6)
    np.testing.assert_allclose(mixed, (args[0] + replaced) / 2, atol=1e-6)
    assert np.abs(replaced - args[0]).min() > 1e-4


def test_hidden_tokens_do_not_reach_the_state(cell):
    c, k, v, bias = inputs()
    bias[:, 3] = MASKED
    other = v.copy()
    other[:, :, 3] += 10
    np.testing.assert_array_equal(run(cell, c, k, v, bias)[0], run(cell, c, k, other, bias)[0])


def test_states_differ_from_the_start(cell):
    initial = cell.initial_state(B)
    assert initial.shape == (B, R, D)
    assert np.abs(initial[0, 0] - initial[0, 1]).max() > 0.01
    np.testing.assert_array_equal(initial[0], initial[1])
