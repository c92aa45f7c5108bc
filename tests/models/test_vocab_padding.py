"""Rows of zeros let devices share a table of any vocabulary, and nothing else sees them."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs.block_recurrent import paper
from jaxlab.core import MeshConfig, UsageError, View, make_mesh, use_mesh
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.nn import Embedding
from jaxlab.objectives import next_token
from jaxlab.sampling import generate
from jaxlab.train.state import plan_state

V, TABLE = 20, "embedding/embedding"
CONFIG = TransformerLMConfig(
    vocab_size=V,
    vocab_multiple=16,
    width=16,
    depth=1,
    num_heads=2,
    window=4,
    recurrent_layers=(0,),
    num_states=2,
    dtype="float32",
)


def view_of(multiple):
    config = dataclasses.replace(CONFIG, vocab_multiple=multiple)
    return View.of(TransformerLM(config, rngs=nnx.Rngs(0)))


def filled(params, value):
    """The parameters with that in every row of padding."""
    return {**params, TABLE: params[TABLE].at[V:].set(value)}


@jax.jit
def run(view):
    """Loss, logits and gradients of a segment, and logits of a step."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, 9)), jnp.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": jnp.ones((2, 8), bool),
        "start": jnp.zeros((2, 8), bool),
    }

    def loss(params):
        return next_token(view.bind(params), batch, None).value

    logits, _ = view(batch["inputs"])
    model = view.model()
    step, _ = model.step(tokens[:, 0], model.init_cache(2))
    return *jax.value_and_grad(loss)(view.params), logits, step


def test_a_padded_model_is_the_model_without_padding():
    padded, plain = view_of(16), view_of(1)
    assert padded.params[TABLE].shape == (32, 16) and plain.params[TABLE].shape == (V, 16)
    for path, p in plain.params.items():
        rows = padded.params[path][:V] if path == TABLE else padded.params[path]
        np.testing.assert_array_equal(rows, p)
    assert not padded.params[TABLE][V:].any()
    (loss, grads, *logits), (loss_1, grads_1, *logits_1) = run(padded), run(plain)
    assert not grads[TABLE][V:].any()
    grads[TABLE] = grads[TABLE][:V]
    jax.tree.map(np.testing.assert_array_equal, (loss, logits), (loss_1, logits_1))
    for path, grad in grads_1.items():  # that of the table is a sum of two, in another order
        np.testing.assert_allclose(grads[path], grad, rtol=1e-5, atol=1e-7, err_msg=path)
    assert logits[0].shape == (2, 8, V)


@pytest.mark.parametrize("value", [1e3, np.nan])
def test_nothing_sees_what_padding_holds(value):
    view = view_of(16)
    changed = view.at(filled(view.params, value))
    jax.tree.map(np.testing.assert_array_equal, run(view), run(changed))
    how = {"num_tokens": 16, "key": jax.random.key(0), "temperature": 3.0}
    drawn, same = (generate(each, [[1, 2, 3]], **how).tokens for each in (view, changed))
    np.testing.assert_array_equal(drawn, same)
    assert drawn.max() < V
    assert np.isnan(view.apply(view.params, jnp.full((1, 4), V), method="embed")).all()


def test_padding_is_not_counted():
    padded, plain = view_of(16), view_of(1)
    assert padded.num_params == plain.num_params
    assert (dict(padded.padding), dict(plain.padding)) == ({TABLE: 12}, {})
    abstract = View.abstract(lambda: TransformerLM(CONFIG, rngs=nnx.Rngs(0)))
    assert abstract.num_params == plain.num_params


def test_eight_devices_share_the_table_of_the_paper():
    mesh = make_mesh(MeshConfig(data=1, tensor=8))

    def plan(**changes):
        config = dataclasses.replace(paper().model, depth=3, **changes)
        build = lambda rngs: TransformerLM(config, rngs=rngs)  # noqa: E731
        return plan_state(build, optax.identity(), key=0, mesh=mesh, strict=True)

    table = plan().abstract.params[TABLE]
    assert table.sharding.shard_shape(table.shape) == (384 // 8, 1024)
    with pytest.raises(UsageError, match="embedding: axis 'vocab' of size 260"):
        plan(vocab_multiple=1)


def test_devices_exchange_rows_of_the_table_and_no_logits():
    b, t, v, d = 2, 24, 260, 16
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    embedding = Embedding(v, d, multiple=128, rngs=nnx.Rngs(0))
    graph, state = nnx.split(embedding)

    def loss(state, x_btd, targets_bt):
        logits = jnp.einsum("btd,vd->btv", x_btd, nnx.merge(graph, state).table())
        one = jnp.take_along_axis(logits, targets_bt[..., None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - one).mean()

    spec = jax.sharding.PartitionSpec
    with use_mesh(mesh):
        state = jax.device_put(state, jax.NamedSharding(mesh, spec("tensor")))
        args = (state, jnp.ones((b, t, d)), jnp.zeros((b, t), jnp.int32))
        program = jax.jit(jax.value_and_grad(loss)).lower(*args).compile().as_text()
    sent = re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute)(?:-start)?\(", program)
    shapes = [
        tuple(map(int, shape.split(",")))
        for types, _ in sent
        for shape in re.findall(r"f32\[([\d,]+)\]", types)
    ]
    assert shapes and all(shape[-1] == d and shape[0] < v for shape in shapes), shapes
    most = max(int(n) for n in re.findall(rf"f32\[(?:{b},{t}|{b * t}),(\d+)\]", program))
    assert most == -(-v // 8)  # the logits of a device
