"""Compiled attention against float64 sums and against the plain attention."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import MeshConfig, UsageError, View, make_mesh, use_mesh
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.nn import BACKENDS, Attention, KeySet, Rotary, Segment, T5Bias
from jaxlab.nn.cpu import compiled
from jaxlab.nn.cpu.compiled_attention import CompiledReading, attend_readings
from jaxlab.nn.reading import SetReading
from jaxlab.nn.tiles import MASKED
from jaxlab.objectives import next_token
from jaxlab.planning.hlo import read_program


def attend_ranges(q, k, v, first, last, *, bias_hm=None, offset=0, mask_ns=None):
    """One reading of scaled queries, with keys in one piece."""
    reading = CompiledReading(q, (k,), (v,), first, last, bias=bias_hm, offset=offset, mask=mask_ns)
    return attend_readings(reading)


def problem(n, t, s, h, g, k, m=0, masked=False):
    """Arrays of a random problem, its distances' offset, and which keys [n, h, t, s] are seen."""
    rng = np.random.default_rng(t * s + k)
    q = rng.normal(size=(n, t, h, k)) / np.sqrt(k)
    keys, values = rng.normal(size=(2, n, s, g, k))
    offset, place_t, place_s = max(s - t, 0), np.arange(t), np.arange(s)
    first = rng.integers(0, s, (n, t))
    last = np.minimum(first + rng.integers(-1, s, (n, t)), s - 1)
    seen = (place_s >= first[..., None]) & (place_s <= last[..., None])
    bias = rng.normal(size=(h, m))
    distance = place_t[:, None] + offset - place_s
    if m:
        seen &= (distance >= 0) & (distance < m)
    mask = np.where(rng.random((n, s)) < 0.3, MASKED, 0.0) if masked else None
    if masked:
        seen &= mask[:, None] == 0
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, keys, values, bias)]
    ranges = [jnp.asarray(x, jnp.int32) for x in (first, last)]
    mask = None if mask is None else jnp.asarray(mask, jnp.float32)
    return arrays, ranges, mask, offset, seen[:, None], np.clip(distance, 0, max(m - 1, 0))


def exact(q, k, v, bias, seen, distance):
    """The same in float64 from whole arrays; a query that sees no key gives zero."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("nthk,nshk->nhts", q, k)
    if bias.shape[1]:
        logits += bias[:, distance]
    logits = jnp.where(seen, logits, -jnp.inf)
    top = jnp.where(seen.any(-1, keepdims=True), logits.max(-1, keepdims=True), 0)
    weights = jnp.where(seen, jnp.exp(logits - jax.lax.stop_gradient(top)), 0)
    total = weights.sum(-1, keepdims=True)
    return jnp.einsum("nhts,nshk->nthk", weights / jnp.where(total == 0, 1, total), v)


PROBLEMS = {
    "several tiles and chunks": (2, 150, 700, 2, 2, 32),
    "a window with biases": (2, 192, 320, 4, 4, 16, 129),
    "shared keys, odd sizes": (1, 70, 93, 6, 2, 20, 31),
    "hidden keys": (3, 33, 300, 2, 1, 64, 0, True),
    "biases and hidden keys": (2, 40, 77, 2, 2, 8, 40, True),
    "one query, one key": (1, 1, 1, 1, 1, 4),
    "wide heads": (1, 65, 64, 1, 1, 136),
}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients_are_those_of_float64_sums(name):
    arrays, ranges, mask, offset, seen, distance = problem(*PROBLEMS[name])

    def ours(q, k, v, bias):
        bias = bias if bias.shape[1] else None
        return attend_ranges(q, k, v, *ranges, bias_hm=bias, offset=offset, mask_ns=mask)

    got, pull = jax.vjp(jax.jit(ours), *arrays)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
        want, exact_pull = jax.vjp(lambda *x: exact(*x, jnp.asarray(seen), distance), *wide)
        ct = np.cos(np.arange(want.size)).reshape(want.shape)
        want_grads = [np.asarray(g) for g in exact_pull(jnp.asarray(ct))]
        want = np.asarray(want)
    np.testing.assert_allclose(got, want, atol=2e-6)
    unseen = ~np.asarray(seen).any(axis=(1, 3))
    assert (np.asarray(got)[unseen] == 0).all()
    for grad, wanted in zip(pull(jnp.asarray(ct, jnp.float32)), want_grads, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=3e-6 * max(1, np.abs(wanted).max(initial=0)))


def of_length_one(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("h", "g", "k"), [(4, 4, 32), (4, 2, 20)], ids=["", "shared keys"])
def test_readings_side_by_side_are_those_of_float64_sums(h, g, k):
    """One of a window in two pieces, of which the second is normalised; one of keys by block."""
    rng = np.random.default_rng(k)
    b, t, old, new, blocks, r = 2, 132, 40, 140, 3, 70
    shapes = {
        "q": (b, t, h, k),
        "old": (b, old, g, k),
        "old_v": (b, old, g, k),
        "new": (b, new, g, k),
        "new_v": (b, new, g, k),
        "bias": (h, 90),
        "scale": (h,),
        "q2": (b, t, h, k),
        "state": (blocks, b, r, h, k),
        "state_v": (blocks, b, r, h, k),
        "scale2": (h,),
    }
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["new"][:, 3] *= 1e-4  # as short as the epsilon under the root
    arrays["q2"][:, 5] = 0.0
    place_t = np.arange(t) + 48
    first, last = place_t - rng.integers(0, 90, (b, t)), place_t - rng.integers(0, 3, (b, t))
    mask = np.where(rng.random((b, old + new)) < 0.2, MASKED, 0.0)
    last2 = np.where(rng.random((b, t)) < 0.3, -1, r - 1)

    def ours(x):
        window = CompiledReading(
            x["q"],
            (x["old"], x["new"]),
            (x["old_v"], x["new_v"]),
            first,
            last,
            bias=x["bias"],
            offset=48,
            mask=jnp.asarray(mask, jnp.float32),
            scale=x["scale"],
            unit=(False, True),
        )
        state = CompiledReading(
            x["q2"], (x["state"],), (x["state_v"],), 0, last2, scale=x["scale2"], unit=(True,)
        )
        return attend_readings(window, state)

    place_s = np.arange(old + new)
    distance = place_t[:, None] - place_s
    seen = (place_s >= first[..., None]) & (place_s <= last[..., None]) & (mask[:, None] == 0)
    seen &= (distance >= 0) & (distance < 90)

    def want(x):
        keys = jnp.concatenate([x["old"], of_length_one(x["new"])], axis=1)
        values = jnp.concatenate([x["old_v"], x["new_v"]], axis=1)
        q = x["scale"][:, None] * of_length_one(x["q"])
        window = exact(q, keys, values, x["bias"], seen[:, None], np.clip(distance, 0, 89))
        q2 = (x["scale2"][:, None] * of_length_one(x["q2"])).reshape(b, blocks, -1, h, k)
        read = [
            exact(
                q2[:, j],
                of_length_one(x["state"][j]),
                x["state_v"][j],
                x["bias"][:, :0],
                (last2.reshape(b, blocks, -1)[:, j] >= 0)[:, None, :, None] & np.full(r, True),
                0,
            )
            for j in range(blocks)
        ]
        return jnp.concatenate([window, jnp.concatenate(read, axis=1)], axis=2)

    def value_and_pull(f, dtype):
        x = {name: jnp.asarray(a, dtype) for name, a in arrays.items()}
        out, pull = jax.vjp(jax.jit(f), x)
        ct = np.cos(np.arange(out.size)).reshape(out.shape)
        return np.asarray(out), jax.tree.map(np.asarray, pull(jnp.asarray(ct, dtype))[0])

    got, grads = value_and_pull(ours, jnp.float32)
    with jax.enable_x64(True):
        wanted, wanted_grads = value_and_pull(want, jnp.float64)
    np.testing.assert_allclose(got, wanted, atol=4e-6)
    for name, wanted in wanted_grads.items():
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(grads[name], wanted, atol=4e-6 * scale, err_msg=name)


@pytest.mark.usefixtures("compiler")
def test_large_logits_do_not_overflow():
    (q, k, v, _), ranges, _, _, seen, distance = problem(1, 20, 300, 1, 1, 16)
    got = attend_ranges(200 * q, k, v, *ranges)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (q, k, v)]
        want = exact(200 * wide[0], *wide[1:], jnp.zeros((1, 0)), jnp.asarray(seen), distance)
    assert np.abs(np.asarray(200 * q[0, :, 0] @ k[0, :, 0].T)).max() > 500
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.usefixtures("compiler")
def test_a_batch_under_vmap_is_the_batch_to_the_bit():
    (q, k, v, _), ranges, *_ = problem(6, 64, 128, 4, 4, 32)
    whole = jax.jit(attend_ranges)(q, k, v, *ranges)
    one = jax.vmap(lambda *x: attend_ranges(*(a[None] for a in x))[0])(q, k, v, *ranges)
    np.testing.assert_array_equal(whole, one)


LAYERS = {
    "the token excluded": {"include_self": False, "normalise": True, "head_scale": 3.0},
    "the token included, no position": {"position": None},
    "shared key heads and rotary": {"num_kv_heads": 2, "position": "rotary"},
}


def layer(backend, position="t5", **kwargs):
    rngs = nnx.Rngs(0)
    kinds = {"t5": lambda: T5Bias(4, rngs=rngs), "rotary": lambda: Rotary(8)}
    return Attention(
        8,
        4,
        8,
        window=16,
        position=kinds.get(position, lambda: None)(),
        backend=BACKENDS[backend],
        rngs=rngs,
        **kwargs,
    )


def inputs(rows, kv_heads=4):
    """Tokens, documents that start anywhere, and a carry of which a part is void."""
    rng = np.random.default_rng(0)
    start = rng.random((rows, 48)) > 0.9
    start[0, :4] = False
    segment = Segment.of(jnp.asarray(start), jnp.arange(rows, dtype=jnp.int32) * 9)
    carry = {
        name: jnp.asarray(rng.normal(size=(rows, 16, kv_heads, 8)), jnp.float32)
        for name in ("keys", "values")
    }
    return jnp.asarray(rng.normal(size=(rows, 48, 8)), jnp.float32), segment, carry


def value_and_gradients(module, x, segment, carry):
    graph, state = nnx.split(module)

    def loss(state, x, carry):
        y, after = nnx.merge(graph, state)(x, segment, carry)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), (y, after)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(state, x, carry)


def assert_close(got, want, atol=2e-5):
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        scale = max(1, np.abs(np.asarray(w)).max())
        np.testing.assert_allclose(g, w, atol=atol * scale, err_msg=str(path))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_it_is_the_plain_layer(name):
    args = inputs(3, LAYERS[name].get("num_kv_heads", 4))
    got, want = (
        value_and_gradients(layer(backend, **LAYERS[name]), *args)
        for backend in ("compiled", "plain")
    )
    assert_close(got, want)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", ["the token excluded", "shared key heads and rotary"])
def test_every_device_of_a_mesh_reads_its_own_rows_and_heads(name):
    args = inputs(4, LAYERS[name].get("num_kv_heads", 4))
    want = value_and_gradients(layer("plain", **LAYERS[name]), *args)
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        got = value_and_gradients(layer("compiled", **LAYERS[name]), *args)
    assert_close(got, want)


CONFIG = TransformerLMConfig(
    vocab_size=32,
    width=32,
    depth=2,
    num_heads=2,
    window=16,
    recurrent_layers=(1,),
    num_states=8,
    backend="compiled",
    dtype="float32",
)


def loss_of(config):
    """That of a segment that goes on a document, in which others start, and its arguments."""
    model = TransformerLM(config, rngs=nnx.Rngs(0))
    view = View.of(model)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 32, (2, 49)), jnp.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": jnp.ones((2, 48), bool),
        "start": jnp.zeros((2, 48), bool).at[0, 16].set(True).at[1, 21].set(True),
    }
    carry = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape)).astype(x.dtype), model.init_carry(2)
    )
    carry["length"] = jnp.asarray([5, 50], jnp.int32)

    def loss(params, carry):
        loss = next_token(view.bind(params), batch, carry)
        return loss.value, loss.carry

    return loss, (view.params, carry)


def loss_and_gradients(config):
    loss, arguments = loss_of(config)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(*arguments)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "change",
    [{}, {"remat": True, "num_kv_heads": 1}, {"state_readers": (0,)}, {"window": 4}],
    ids=["as it is", "rematerialised, shared keys", "with a reader of the state", "many blocks"],
)
def test_a_recurrent_model_with_it_is_the_plain_model(change):
    config = dataclasses.replace(CONFIG, **change)
    plain = dataclasses.replace(config, backend="plain")
    assert_close(loss_and_gradients(config), loss_and_gradients(plain))


@pytest.mark.usefixtures("compiler")
def test_a_recurrent_model_with_it_on_a_mesh_is_the_plain_model():
    with use_mesh(make_mesh(MeshConfig(data=2, tensor=2, fsdp=1), jax.devices()[:4])):
        got = loss_and_gradients(CONFIG)
    assert_close(got, loss_and_gradients(dataclasses.replace(CONFIG, backend="plain")))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "change",
    [{}, {"update": "dual", "gate": "lstm", "gated": True}, {"state_readers": (0,)}],
    ids=["as it is", "every product of the state", "with a reader of the state"],
)
def test_no_product_of_a_model_with_it_is_left_to_plain_operations(change):
    def products(config):
        loss, arguments = loss_of(config)
        program = jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments)
        return program.as_text().count("dot_general")

    # T5's table of biases is laid out by a small product.
    config = dataclasses.replace(CONFIG, position="rotary", **change)
    assert products(config) == 0 < products(dataclasses.replace(config, backend="plain"))


@pytest.mark.usefixtures("compiler")
def test_what_the_last_block_leaves_in_the_state_is_not_gone_back_through():
    loss, arguments = loss_of(CONFIG)  # three blocks, the state read by the tokens of each
    text = jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments).as_text()
    calls = {kind: text.count(f"@jaxlab_attention_{kind}(") for kind in ("forward", "backward")}
    windows = 2  # the one of the recurrent layer reads the state too
    assert calls == {"forward": windows + 3, "backward": windows + 2}


def test_plain_operations_do_not_go_back_through_it_either():
    loss, arguments = loss_of(dataclasses.replace(CONFIG, backend="plain"))

    def products(weight):
        def total(params, carry):
            value, after = loss(params, carry)
            return value + weight * after["blocks"]["1"]["state"].sum() if weight else value

        return jax.jit(jax.grad(total)).lower(*arguments).as_text().count("dot_general")

    assert products(0) < products(1)


@pytest.mark.usefixtures("compiler")
def test_it_says_its_flops_to_plans():
    (q, k, v, bias), ranges, _, offset, *_ = problem(2, 24, 40, 4, 2, 8, 17)

    def total(q, bias):
        return attend_ranges(q, k, v, *ranges, bias_hm=bias, offset=offset).sum()

    program = jax.jit(jax.grad(total, (0, 1))).lower(q, bias).compile().as_text()
    assert read_program(program).kernel_flops == (2 + 5) * 2 * (2 * 4 * 24 * 17) * 8


@pytest.mark.usefixtures("compiler")
def test_logits_near_the_floor_are_those_of_the_plain_operations():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(3, 8, 2, 4)), jnp.float32) for _ in range(3))
    q, k = q.at[..., 0].set(-20.0), k.at[..., 0].set(50.0 + 0.05 * k[..., 0])  # about -1,000
    bias = jnp.zeros((3, 8)).at[:, 5].set(MASKED)

    def read(backend, q):
        return BACKENDS[backend].read(SetReading(q, KeySet((k,), (v,), (False,)), bias=bias))

    got, want = (read(backend, q) for backend in ("compiled", "plain"))
    shrunk = np.abs(np.asarray(want)).max()
    assert 0 < shrunk and not np.allclose(want, read("plain", q.at[..., 0].set(0.0)))
    np.testing.assert_allclose(got, want, atol=1e-3 * shrunk)


def test_the_scan_over_states_keeps_no_logits_of_plain_attention():
    """They would be the largest arrays of a step; compiled attention has none."""
    config = dataclasses.replace(CONFIG, backend="plain", num_states=24, width=40)
    model = TransformerLM(config, rngs=nnx.Rngs(0))
    view = View.of(model)
    tokens = jnp.zeros((2, 48), jnp.int32)

    def total(params):
        return view.apply(params, tokens)[0].sum()

    _, pull = jax.vjp(total, view.params)
    kept = {x.shape for x in jax.tree.leaves(pull) if hasattr(x, "shape")}
    assert kept and not any({24, 32} <= set(shape[-2:]) for shape in kept)


@pytest.mark.usefixtures("compiler")
def test_forward_mode_is_refused():
    (q, k, v, _), ranges, *_ = problem(1, 8, 8, 1, 1, 4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: attend_ranges(q, k, v, *ranges), (q,), (q,))


def test_what_it_cannot_run_is_refused_in_one_line(monkeypatch):
    with pytest.raises(UsageError, match=r"in float32, not in bfloat16; set dtype='float32'"):
        attend_ranges(*[jnp.ones((1, 4, 1, 4), jnp.bfloat16)] * 3, *[jnp.zeros((1, 4), int)] * 2)
    how = {"backend": BACKENDS["compiled"], "rngs": nnx.Rngs(0)}
    with pytest.raises(UsageError, match=r"backend 'compiled' needs a window"):
        Attention(8, 4, **how)
    with pytest.raises(UsageError, match=r"attention_dropout=0.1 with backend 'compiled'"):
        Attention(8, 4, window=4, attention_dropout=0.1, **how)
    monkeypatch.setattr(compiled, "_register", lambda: None)
    with pytest.raises(TypeError, match=r"\[1, 4, 3, 4\] do not fit .*: float32\[1, 4, 2, 4\], "):
        attend_ranges(
            jnp.ones((1, 4, 3, 4)), *[jnp.ones((1, 4, 2, 4))] * 2, *[jnp.zeros((1, 4), int)] * 2
        )
    one, two = (jnp.ones((1, t, 1, 4)) for t in (4, 2))
    readings = [CompiledReading(x, (x,), (x,), 0, 0) for x in (one, two)]
    with pytest.raises(TypeError, match=r"several shapes: \[\(1, 2, 1, 4\), \(1, 4, 1, 4\)\]"):
        attend_readings(*readings)
    with pytest.raises(TypeError, match=r"keys in 2 pieces, values in 1 and unit of shape \(1,\)"):
        attend_readings(CompiledReading(one, (one, one), (one,), 0, 0, unit=(True,)))
    blocks = jnp.ones((3, 1, 2, 1, 4))  # three, which do not divide four queries
    with pytest.raises(TypeError, match=r"\[1, 4, 1, 4\] do not fit .*: float32\[3, 1, 2, 1, 4\]"):
        attend_readings(CompiledReading(one, (blocks,), (blocks,), 0, 0))
