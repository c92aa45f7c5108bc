"""Dropout of the attention's weights: which are dropped, and that values and gradients follow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import MeshConfig, UsageError, make_mesh, use_devices, use_mesh
from jaxlab.nn import (
    BACKENDS,
    Attention,
    Block,
    BlockRecurrentAttention,
    BlockRecurrentCell,
    FeedForward,
    Heads,
    Rotary,
    Segment,
    StateReadingAttention,
    T5Bias,
    reading,
)

D, H, K, W, RATE = 8, 4, 6, 4, 0.4
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
    "bidirectional": {"causal": False, "normalise": True},
}
ONE, OTHER = jax.random.key(1), jax.random.key(2)


def make(position=None, rate=RATE, **kwargs):
    rngs = nnx.Rngs(0)
    position = T5Bias(H, rngs=rngs) if position == "t5" else position and Rotary(K)
    return Attention(
        D, H, K, position=position, head_scale=3.0, attention_dropout=rate, rngs=rngs, **kwargs
    )


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(layer, blocks=3, rows=2):
    """What `read` takes: queries, keys, values, documents that start anywhere, a carry."""
    start = np.zeros((rows, blocks * W), bool)
    start[0, [3, 5][:blocks]] = start[1, W : W + 1] = True
    segment = Segment.of(jnp.asarray(start), jnp.full((rows,), W - 1))
    carry = {
        name: numbers(*x.shape, seed=5 + i)
        for i, (name, x) in enumerate(layer.init_carry(rows).items())
    }
    return (*layer.heads(numbers(rows, blocks * W, D)), segment, carry)


def read(layer, q, k, v, segment, carry, key=None):
    return layer.read(Heads(q, k, v), segment if layer.causal else None, carry or None, key=key)[0]


@jax.jit
def weights(layer, q, k, v, segment, carry, key=None):
    """Weights [b, t, h, s] of carried and own tokens: values are linear in what is read."""

    def mixed(v, old):
        # One feature of a head of its own for every key and value head is enough.
        carried = carry | {"values": old} if old is not None else carry
        return read(layer, q, k, v, segment, carried, key)[..., 0]

    old = carry.get("values")
    by_v, by_old = (
        jax.jacrev(mixed, argnums=(0, 1))(v, old)
        if old is not None
        else (jax.jacrev(lambda v: mixed(v, None))(v), None)
    )

    def own_row(x_bthbsnk):  # a row reads itself alone, a head the values that it shares
        x_bthsn = jnp.einsum("bthbsn->bthsn", x_bthbsnk[..., 0])
        return x_bthsn.sum(axis=-1)

    found = own_row(by_v)
    return found if by_old is None else jnp.concatenate([own_row(by_old), found], axis=-1)


def kept(layer, args, key=ONE):
    """The mask [b, t, h, s] of what was kept, and which weights were there to drop."""
    before, after = (np.asarray(weights(layer, *args, key)) for key in (None, key))
    there = before > 1e-6
    ratio = np.where(there, after, 1) / np.where(there, before, 1)
    assert not after[~there].any()
    dropped = np.isclose(ratio, 0)
    np.testing.assert_allclose(ratio[there & ~dropped], 1 / (1 - RATE), rtol=1e-4)
    return ~dropped, there


def dense(layer, mask, q, k, v, segment, carry):
    """Softmax over carried and own tokens as one matrix, then the mask."""
    b, t = q.shape[:2]
    old = carry["keys"].shape[1] if carry else 0
    if carry:
        k, v = (jnp.concatenate([carry[n], x], 1) for n, x in (("keys", k), ("values", v)))
    places = np.arange(-old, t)
    if isinstance(layer.position, Rotary):
        q, k = layer.position(q, places[old:]), layer.position(k, places)
    k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
    distance = places[old:, None] - places
    seen = jnp.ones((b, t, old + t), bool)
    if layer.causal:
        nearest = 0 if layer.include_self else 1
        inside = (distance >= nearest) & (distance < nearest + (layer.window or 1000))
        doc_bs = jnp.concatenate([segment.remembered(old), segment.doc_bt], axis=1)
        seen = inside[None] & (segment.doc_bt[:, :, None] == doc_bs[:, None])
    logits = jnp.einsum("bthk,bshk->bhts", q, k, precision="highest")
    if isinstance(layer.position, T5Bias):
        scale = 1.0 if layer.scale is None else jnp.abs(layer.scale[...])[:, None, None]
        logits += (layer.position(distance) * scale)[None]
    logits = jnp.where(seen[:, None], logits, -1e9)
    shown = seen.any(-1)[:, None, :, None]
    weights_bhts = jnp.where(shown, jax.nn.softmax(logits, axis=-1), 0)
    weights_bhts = weights_bhts * mask.transpose(0, 2, 1, 3) / (1 - layer.attention_dropout)
    return jnp.einsum("bhts,bshk->bthk", weights_bhts, v, precision="highest")


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_a_dense_softmax_with_the_same_mask(case, platform):
    layer = make(**CASES[case])
    args = inputs(layer)
    mask, there = kept(layer, args)
    assert 0.3 < mask[there].mean() < 0.9
    target = numbers(*args[0].shape, seed=9)

    def loss(f):
        def of(layer, q, k, v, carry):
            return (f(layer, q, k, v, args[3], carry) * target).sum()

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2, 3, 4)))(layer, *args[:3], args[4])

    with use_devices(jax.devices()[:1], platform):
        got = loss(lambda *x: read(*x, ONE))
    want = loss(lambda layer, *x: dense(layer, mask, *x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), got, want)
    assert all(np.abs(g).max() > 1e-3 for g in got[1][1:4])


@pytest.mark.parametrize("case", [name for name in CASES if "window" in name])
def test_the_mask_is_one_for_all_rows_and_blocks(case):
    layer = make(**CASES[case])
    q, k, v, _, carry = inputs(layer)
    args = (q, k, v, Segment.of(jnp.zeros((2, 3 * W), bool), jnp.full((2,), W)), carry)
    mask, there = kept(layer, args)
    own = [slice(j * W, (j + 2) * W) for j in range(3)]
    tiles = [
        np.where(there, mask, True)[b, j * W : (j + 1) * W, :, own[j]]
        for b in range(2)
        for j in range(3)
    ]
    assert not tiles[0].all()
    assert all((tile == tiles[0]).all() for tile in tiles)
    assert (tiles[0][:, 0] != tiles[0][:, 1]).any()  # heads have their own


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_what_is_dropped_does_not_depend_on_the_tiles(platform, monkeypatch):
    layer = make(**CASES["window before the token"])
    args, found = inputs(layer), []
    for size in (4, 2, 1):
        monkeypatch.setattr(reading, "tile_size", lambda w, size=size: size)
        with use_devices(jax.devices()[:1], platform):
            found.append(jax.jit(lambda *x: read(layer, *x))(*args, ONE))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-6)


def test_a_window_that_holds_the_segment_drops_what_full_attention_drops():
    full, window = make(position="t5"), make(position="t5", window=W)
    x = numbers(2, W, D)
    np.testing.assert_allclose(full(x, key=ONE)[0], window(x, key=ONE)[0], atol=1e-6)


def test_segments_with_one_key_are_one_segment():
    layer, x = make(**CASES["window before the token"]), numbers(2, 4 * W, D)
    want, _ = layer(x, Segment.of(jnp.zeros((2, 4 * W), bool)), key=ONE)
    length, carry, got = jnp.zeros(2, jnp.int32), None, []
    for part in (slice(0, 3 * W), slice(3 * W, 4 * W)):
        segment = Segment.of(jnp.zeros(x[:, part].shape[:2], bool), length)
        y, carry = layer(x[:, part], segment, carry, key=ONE)
        length = segment.length_after()
        got.append(y)
    np.testing.assert_allclose(np.concatenate(got, axis=1), want, atol=1e-6)


@pytest.mark.parametrize("case", ["full", "window before the token"])
def test_the_mean_over_keys_is_the_value_without_dropout(case):
    layer = make(**CASES[case])
    args, count = inputs(layer, blocks=1), 2000
    keys = jax.random.split(jax.random.key(0), count)
    values = np.asarray(jax.jit(jax.vmap(lambda key: read(layer, *args, key)))(keys))
    error = np.abs(values.mean(0) - read(layer, *args))
    assert values.std(0).max() > 0.1
    assert (error <= 5 * values.std(0) / count**0.5 + 1e-5).all()


def test_the_share_that_is_dropped_is_the_rate():
    layer = Attention(D, H, K, window=64, attention_dropout=0.1, rngs=nnx.Rngs(0))
    q = k = jnp.zeros((1, 64, H, K))  # query t sees t + 1 keys: weights are counts of what is kept
    heads = Heads(q, k, jnp.ones((1, 64, H, K)))
    values = layer.read(heads, None, None, key=ONE)[0][0, :, :, 0]
    count = np.arange(1, 65)
    share = 0.9 * (np.asarray(values) * count[:, None]).sum() / (H * count.sum())
    assert share == pytest.approx(0.9, abs=5 * (0.09 / (H * count.sum())) ** 0.5)
    assert share != pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_without_a_key_or_a_rate_the_program_is_that_without_dropout(case):
    def program(rate, key):
        layer = make(rate=rate, **CASES[case])
        q, k, v, segment, carry = inputs(layer)
        return str(jax.make_jaxpr(lambda q: read(layer, q, k, v, segment, carry, key))(q))

    plain = program(0.0, None)
    assert program(0.0, ONE) == plain and program(RATE, None) == plain
    assert "random_bits" not in plain and "random_bits" in program(RATE, ONE)


def test_one_key_drops_the_same_and_another_something_else():
    layer, x = make(**CASES["window before the token"]), numbers(1, 2 * W, D)
    one, again, other = (layer(x, key=key)[0] for key in (ONE, ONE, OTHER))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_bfloat16_drops_what_float32_drops():
    kwargs = CASES["window before the token"]
    x = numbers(2, 3 * W, D)
    exact, low = (
        make(dtype=dtype, **kwargs)(x.astype(dtype), key=ONE)[0]
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    off = make(**kwargs)(x)[0]
    assert low.dtype == jnp.bfloat16
    assert np.abs(low - exact).max() < 0.1 * np.abs(off - exact).max()


@pytest.mark.parametrize("case", ["full, rotary, one key head", "window before the token"])
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"sequence": 2, "data": 4}])
def test_a_mesh_gives_what_one_device_gives(case, sizes):
    layer = make(**CASES[case])
    args = inputs(layer, blocks=4, rows=4)
    graph, state = nnx.split(layer)

    def of(state, q, k, v, segment, carry, key):
        y = read(nnx.merge(graph, state), q, k, v, segment, carry, key)
        return jnp.sin(y).sum(), y

    def run():
        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2, 3), has_aux=True))(
            state, *args, ONE
        )

    want = run()
    with use_mesh(make_mesh(MeshConfig(**sizes))):
        got = run()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, want)
    assert (want[0][1] != read(layer, *args)).any()


def recurrent(rate):
    """A recurrent layer and one that reads a state, with the same token attention."""
    rngs = nnx.Rngs(0)
    tokens = [make(window=W, normalise=True, extra_heads=H, rate=rate) for _ in range(2)]
    cell = BlockRecurrentCell(D, 3, H, K, rngs=rngs)
    return (
        BlockRecurrentAttention(tokens[0], cell, D, rngs=rngs),
        StateReadingAttention(tokens[1], D, rngs=rngs),
    )


def test_the_state_is_written_without_dropout():
    layer, _ = recurrent(RATE)
    x, carry = numbers(2, 2 * W, D), layer.init_carry(2)
    (y, after), (y_off, after_off) = (layer(x, None, carry, key=key) for key in (ONE, None))
    assert (y != y_off).any()
    jax.tree.map(np.testing.assert_array_equal, after, after_off)


def test_the_state_is_read_without_dropout():
    writer, reader = recurrent(RATE)
    x, c_brd = numbers(2, W, D), numbers(2, 3, D, seed=3)
    keys, values = writer.cell.keys_values(c_brd)
    state = {"state_keys": keys, "state_values": values}
    segment = Segment.of(jnp.zeros((2, W), bool), jnp.ones(2, jnp.int32))
    for layer, given in ((writer, {"state": c_brd}), (reader, state)):
        carry = layer.init_carry(2) | given
        on, off = (layer(x, segment, carry, key=key)[0] for key in (ONE, None))
        assert (on != off).any()
        kernel = layer.attention.value.kernel
        kernel[...] = jnp.zeros_like(kernel[...])  # nothing comes from the window any more
        on, off = (layer(x, segment, carry, key=key)[0] for key in (ONE, None))
        np.testing.assert_array_equal(on, off)
        assert np.abs(on).max() > 1e-3


def test_a_block_gives_its_key_to_mixers_that_drop_weights():
    def block(rate):
        mixer = make(rate=rate, window=W)
        return Block(D, mixer, FeedForward(D, D, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(2))

    x = numbers(2, W, D)
    plain, off = block(0.0)(x)[0], block(RATE)(x)[0]
    np.testing.assert_array_equal(plain, off)
    np.testing.assert_array_equal(plain, block(0.0)(x, key=ONE)[0])
    assert (block(RATE)(x, key=ONE)[0] != plain).any()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_that_cannot_be_are_refused(rate):
    with pytest.raises(UsageError, match=r"^attention_dropout=\S+ must lie in \[0, 1\)$"):
        make(rate=rate)


def test_the_fused_kernel_drops_no_weights():
    message = r"^attention_dropout=0.4 with backend 'pallas', which .* or backend='plain'$"
    with pytest.raises(UsageError, match=message):
        make(window=W, backend=BACKENDS["pallas"])
    make(window=W, backend=BACKENDS["pallas"], rate=0.0)
