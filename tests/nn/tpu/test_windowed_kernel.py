"""The fused kernel against the plain attention: values and gradients, in Pallas's interpreter.

That it compiles for TPUs is asked of their compiler, where it is installed.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import MeshConfig, UsageError, make_mesh, use_devices, use_mesh
from jaxlab.nn import BACKENDS, PLAIN, Attention, Heads, Rotary, Segment, T5Bias
from jaxlab.nn.tpu import windowed_kernel
from jaxlab.nn.tpu.backend import PallasBackend

D, H, K = 8, 4, 8
# Window, tile, segment, and the rest of the layer: one tile a window, or several.
CASES = {
    "one tile, the token excluded": (8, 8, 32, {"include_self": False, "normalise": True}),
    "four tiles": (16, 4, 32, {"include_self": False, "normalise": True}),
    "two tiles, the token included": (8, 4, 16, {"position": None}),
    "a segment of one window": (8, 4, 8, {"normalise": True}),
    "shared key heads and rotary": (8, 4, 16, {"num_kv_heads": 2, "position": "rotary"}),
}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Windows that TPUs would not take, for the kernel as plain operations."""
    monkeypatch.setattr(windowed_kernel, "LANES", 1)


def layers(window, dtype=jnp.float32, position="t5", **kwargs):
    """The same layer with and without the kernel."""

    def make(backend):
        rngs = nnx.Rngs(0)
        kinds = {"t5": lambda: T5Bias(H, rngs=rngs), "rotary": lambda: Rotary(K)}
        return Attention(
            D,
            H,
            K,
            window=window,
            head_scale=3.0,
            position=kinds.get(position, lambda: None)(),
            backend=backend,
            dtype=dtype,
            rngs=rngs,
            **kwargs,
        )

    return make(PallasBackend(interpret=True)), make(PLAIN)


def inputs(window, length, rows=2, dtype=jnp.float32):
    """Tokens, documents that start anywhere, and a carry of which a part is void."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, length, D)), dtype)
    start = rng.random((rows, length)) > 0.85
    start[0, :4], start[-1, 0] = False, True
    segment = Segment.of(jnp.asarray(start), jnp.arange(rows, dtype=jnp.int32) * 9 + 3)
    carry = {
        name: jnp.asarray(rng.normal(size=(rows, window, layers(window)[0].num_kv_heads, K)), dtype)
        for name in ("keys", "values")
    }
    return x, segment, carry


def loss(layer, graph_state, x, segment, carry):
    y, _ = nnx.merge(nnx.split(layer)[0], graph_state)(x, segment, carry)
    return (y.astype(jnp.float32) * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y


def value_and_gradients(layer, x, segment, carry):
    def of(state, x, carry):
        return loss(layer, state, x, segment, carry)

    run = jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True))
    with use_devices(jax.devices()[:1], "tpu"):
        (_, y), grads = run(nnx.split(layer)[1], x, carry)
    return y, grads


def assert_close(got, want, atol):
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        g, w = (np.asarray(a, np.float32) for a in (g, w))
        np.testing.assert_allclose(g, w, atol=atol * max(1, np.abs(w).max()), err_msg=str(path))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_attention(case, monkeypatch):
    window, tile, length, kwargs = CASES[case]
    monkeypatch.setattr(windowed_kernel, "TILE", tile)
    fused, plain = layers(window, **kwargs)
    x, segment, carry = inputs(window, length)
    if "num_kv_heads" in kwargs:
        carry = jax.tree.map(lambda a: a[:, :, : kwargs["num_kv_heads"]], carry)
    got, want = (value_and_gradients(layer, x, segment, carry) for layer in (fused, plain))
    assert_close(got, want, 2e-5)
    bias = [g for path, g in jax.tree.leaves_with_path(want[1][0]) if "position" in str(path)]
    assert all(np.abs(np.asarray(g)).max() > 1e-2 for g in bias)


def test_bfloat16_is_as_near_to_float32_as_the_plain_attention_is(monkeypatch):
    monkeypatch.setattr(windowed_kernel, "TILE", 4)
    kwargs = {"include_self": False, "normalise": True}
    fused, plain = layers(8, jnp.bfloat16, **kwargs)
    args = inputs(8, 32, dtype=jnp.bfloat16)
    got, rounded = (value_and_gradients(layer, *args) for layer in (fused, plain))
    assert got[0].dtype == jnp.bfloat16
    exact = value_and_gradients(layers(8, **kwargs)[1], *inputs(8, 32))
    assert_close(got, exact, 0.05)
    assert_close(got, rounded, 0.05)


def test_a_row_that_sees_no_key_gives_zero_and_no_gradient():
    fused, _ = layers(8, include_self=False)
    q, k, v = (jnp.ones((1, 8, H, K)) for _ in range(3))
    segment = Segment.of(jnp.ones((1, 8), bool))
    carry = {name: jnp.ones((1, 8, H, K)) for name in ("keys", "values")}
    with use_devices(jax.devices()[:1], "tpu"):
        read = jax.jit(lambda *x: fused.read(Heads(*x), segment, carry)[0])
        values, grads = jax.value_and_grad(lambda *x: read(*x).sum(), (0, 1, 2))(q, k, v)
    assert values == 0 and all((g == 0).all() for g in grads)


def test_every_device_of_a_mesh_reads_its_own_rows_and_heads(monkeypatch):
    monkeypatch.setattr(windowed_kernel, "TILE", 4)
    fused, plain = layers(8, include_self=False, normalise=True)
    args = inputs(8, 16, rows=4)
    want = value_and_gradients(plain, *args)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh), use_devices(jax.devices(), "tpu"):

        def of(state, x, carry):
            return loss(fused, state, x, args[1], carry)

        run = jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True))
        shapes = (nnx.split(fused)[1], args[0], args[2])
        lowered = run.lower(*shapes)
        (_, y), grads = run(*shapes)
    assert_close((y, grads), want, 2e-5)
    # Two of four heads and one of four rows: the interpreter's loops see no more.
    assert "1x2x16x8xf32" in lowered.as_text() and "manual" in lowered.as_text()


def test_a_token_knows_how_far_its_document_reaches_back():
    _, segment, _ = inputs(8, 16)
    reach = np.asarray(segment.ages())
    doc = np.concatenate([segment.remembered(8), segment.doc_bt], axis=1)
    seen = [[(row[: 8 + t] == row[8 + t]).sum() for t in range(16)] for row in doc]
    np.testing.assert_array_equal(np.minimum(reach, 8 + np.arange(16)), seen)


def test_it_is_refused_in_one_line_where_it_cannot_run(monkeypatch):
    fused, _ = layers(8)
    x = jnp.ones((1, 16, D))
    with pytest.raises(UsageError, match=r"runs on TPUs, and this program is for cpu; take back"):
        fused(x)
    with use_devices(jax.devices()[:1], "tpu"):
        monkeypatch.setattr(windowed_kernel, "LANES", 128)
        with pytest.raises(UsageError, match=r"window=8 is not a multiple of 128.*nearest: 128"):
            fused(x)
        monkeypatch.setattr(windowed_kernel, "LANES", 1)
        mesh = make_mesh(MeshConfig(data=4, sequence=2), jax.devices())
        with use_mesh(mesh), pytest.raises(UsageError, match=r"sequence=2 shards the 16 tokens"):
            jax.jit(lambda x: fused(x)[0])(x)
    with pytest.raises(UsageError, match=r"backend 'pallas' needs a window"):
        Attention(D, H, K, backend=BACKENDS["pallas"], rngs=nnx.Rngs(0))


# The gradient of a layer, for two devices that share its heads and two that share the rows.
COMPILE = """
import jax, jax.numpy as jnp
from flax import nnx
from jaxlab import core
from jaxlab.nn import Attention, T5Bias, make_backend
from jaxlab.planning.pods import tpu_pod
from jaxlab.planning.hlo import read_program

pod = tpu_pod("{topology}")
mesh = core.make_mesh(core.MeshConfig(data=-1, tensor=2), pod.devices)

def loss(x):
    rngs = nnx.Rngs(0)
    layer = Attention(
        64, 2, {head_dim}, window={window}, normalise=True, include_self=False,
        backend=make_backend("pallas"), position=T5Bias(2, rngs=rngs), dtype=jnp.{dtype}, rngs=rngs,
    )
    return layer(x)[0].astype(jnp.float32).sum()

rows = jax.ShapeDtypeStruct(
    (mesh.shape["data"], 2 * {window}, 64), jnp.{dtype}, sharding=core.batch_sharding(mesh)
)
with core.use_devices(pod.devices), core.use_mesh(mesh):
    compiled = jax.jit(jax.value_and_grad(loss)).lower(rows).compile()
program = read_program(compiled.as_text())
print(sum(each.opcode == "custom-call" and "tpu_custom_call" in each.attributes
          for _, _, each in program.instructions()))
"""


@pytest.mark.parametrize(
    ("topology", "window", "head_dim", "dtype"),
    [("v4:2x2x1", 512, 128, "bfloat16"), ("v5e:2x2", 128, 64, "float32")],
)
def test_the_tpu_compiler_takes_both_directions(topology, window, head_dim, dtype, python):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed; `make test` installs it")
    words = {"topology": topology, "window": window, "head_dim": head_dim, "dtype": dtype}
    process = python("-c", COMPILE.format(**words))
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.split() == ["2"]
