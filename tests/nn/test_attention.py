from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, use_devices
from jaxlab.nn import Attention, Cursor, Heads, Rotary, Segment, T5Bias
from jaxlab.nn.position import t5_buckets
from jaxlab.nn.toeplitz import by_distance

D, H, K, W = 8, 4, 6, 4
CASES = {
    "full": {"position": "t5"},
    "full, rotary, one key head": {"position": "rotary", "num_kv_heads": 1},
    "window before the token": {
        "window": W,
        "include_self": False,
        "normalise": True,
        "position": "t5",
    },
    "window with the token, shared key heads": {
        "window": W,
        "num_kv_heads": 2,
        "position": "rotary",
    },
    "window, no position": {"window": W, "normalise": True},
    "bidirectional": {"causal": False, "normalise": True},
}


def make(position=None, **kwargs):
    rngs = nnx.Rngs(0)
    position = T5Bias(H, rngs=rngs) if position == "t5" else position and Rotary(K)
    return Attention(D, H, K, position=position, head_scale=3.0, rngs=rngs, **kwargs)


def dense(layer, x, doc, context=None):
    """The layer in float64, all logits at once."""
    x = np.asarray(x, np.float64)
    source = x if context is None else np.asarray(context, np.float64)
    wq, wk, wv, wo = (
        np.asarray(p.kernel[...], np.float64)
        for p in (layer.query, layer.key, layer.value, layer.output)
    )
    q, k, v = (
        np.einsum("btd,dhk->bhtk", a, kernel) for a, kernel in ((x, wq), (source, wk), (source, wv))
    )
    k, v = (np.repeat(a, H // a.shape[1], axis=1) for a in (k, v))
    scale = K**-0.5
    if layer.scale is not None:
        q, k = (a / np.sqrt(np.square(a).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
        scale = np.abs(np.asarray(layer.scale[...]))[:, None, None]
    distance = np.arange(q.shape[2])[:, None] - np.arange(k.shape[2])[None]
    if isinstance(layer.position, Rotary):
        rates = 10000.0 ** (-np.arange(K // 2) / (K // 2))
        q, k = ((a[..., : K // 2] + 1j * a[..., K // 2 :]) for a in (q, k))
        turn = np.exp(1j * distance[..., None] * rates)
        logits = np.einsum("bhtk,bhsk,tsk->bhts", q, k.conj(), turn).real
    else:
        logits = np.einsum("bhtk,bhsk->bhts", q, k)
    if isinstance(layer.position, T5Bias):
        bias = np.asarray(layer.position.bias[...])[:, t5_buckets(distance)]
        logits = logits + bias / (scale if layer.scale is None else 1)
    seen = np.ones(distance.shape, bool)
    if layer.causal:
        nearest = 0 if layer.include_self else 1
        seen = (distance >= nearest) & (distance < nearest + (layer.window or 1000))
        seen = seen & (doc[:, :, None] == doc[:, None, :])[:, None]
    weights = np.where(seen, np.exp(scale * logits), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bhts,bhsk,hkd->btd", weights, v, wo)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compiled():
    """A layer's call, compiled for the platform that is in force at its first use."""
    return jax.jit(lambda layer, *args, **kwargs: layer(*args, **kwargs))


call = compiled()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("case", CASES)
def test_layer_equals_the_dense_formula_with_documents_and_a_carry(case, platform):
    layer, x = make(**CASES[case]), numbers(2, 4 * W, D)
    start = np.zeros((2, 4 * W), bool)
    start[0, [3, 5]] = start[1, [W, 3 * W]] = True
    want = dense(layer, x, np.cumsum(start, axis=1))
    outputs, length, carry, run = [], jnp.zeros(2, jnp.int32), None, compiled()
    parts = [slice(0, 4 * W)] if layer.window is None else [slice(0, 2 * W), slice(2 * W, 4 * W)]
    for part in parts:
        segment = Segment.of(jnp.asarray(start[:, part]), length)
        carry = layer.init_carry(2) if carry is None else carry
        with use_devices(jax.devices()[:1], platform):
            y, carry = run(layer, x[:, part], segment, carry)
        length = segment.length_after()
        outputs.append(y)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), want, atol=1e-5)


def test_cross_attention_reads_all_of_the_context():
    layer, x, context = make(causal=False), numbers(2, 3, D), numbers(2, 5, D, seed=1)
    got, carry = call(layer, x, context_bsd=context)
    assert carry is None
    np.testing.assert_allclose(got, dense(layer, x, None, context), atol=1e-5)


def test_a_token_does_not_see_itself_where_it_is_excluded():
    layer, x = make(**CASES["window before the token"]), numbers(1, 2 * W, D)
    q, k, v = layer.heads(x)

    @jax.jit
    def read(k, v):
        return layer.read(Heads(q, k, v), None, None)[0]

    changed = read(k.at[:, 5].add(1), v.at[:, 5].add(1)) != read(k, v)
    np.testing.assert_array_equal(changed.any(axis=(0, 2, 3)), [False] * 6 + [True] * 2)
    assert (read(k, v)[:, 0] == 0).all()


@pytest.mark.parametrize("case", [name for name in CASES if "key head" in name or "before" in name])
def test_steps_with_a_ring_equal_the_dense_formula(case):
    layer, x = make(**CASES[case]), numbers(2, 3 * W, D)
    want = dense(layer, x, np.zeros((2, 3 * W)))
    step = jax.jit(lambda layer, *args: layer.step(*args))
    cache = layer.init_cache(2, 3 * W)
    for t in range(3 * W):
        at = jnp.full((2,), t)
        y, cache = step(layer, x[:, t], Cursor(at, at), cache)
        np.testing.assert_allclose(y, want[:, t], atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"causal": False, "window": 4}, "has no window"),
        ({"include_self": False}, "include_self=False needs a window"),
    ],
)
def test_combinations_that_do_not_exist_are_refused(kwargs, message):
    with pytest.raises(UsageError, match=message):
        make(**kwargs)


def test_refusals_name_the_nearest_sizes():
    with pytest.raises(UsageError, match="width=10 .* num_heads=4; nearest: 8, 12"):
        Attention(10, 4, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="10 tokens is not a multiple of window=4; nearest: 8, 12"):
        make(window=4)(numbers(1, 10, D))
    with pytest.raises(UsageError, match="causal=False. does not decode"):
        make(causal=False).init_cache(1)
    with pytest.raises(UsageError, match="needs max_length"):
        make().init_cache(1)


@pytest.mark.parametrize(("num_keys", "num_queries"), [(2, 3), (4, 4), (12, 4), (6, 9), (5, 1)])
def test_biases_by_distance_are_the_same_on_every_platform(num_keys, num_queries):
    bias_hm = jnp.asarray(np.random.default_rng(0).normal(size=(2, num_keys + num_queries - 1)))
    bias_hm = bias_hm.at[:, :2].set(-1e9)
    # Row s, column t: the last query and the first key are furthest apart.
    want = [
        [row[num_keys - 1 - s : num_keys - 1 - s + num_queries] for s in range(num_keys)]
        for row in np.asarray(bias_hm)
    ]
    for platform in ("cpu", "tpu"):
        with use_devices(jax.devices()[:1], platform):
            np.testing.assert_allclose(by_distance(bias_hm, num_keys), want, rtol=1e-6)
