from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlab import train
from jaxlab.core import UsageError


def test_parameters_and_optimizer_state_are_born_sharded(toy, eight):
    _, state, notes = toy.make_state(eight, optax.adam(1e-3))
    assert notes == ()
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        assert tree["up/kernel"].addressable_shards[0].data.shape == (2, 4)
        assert tree["down/kernel"].addressable_shards[0].data.shape == (4, 2)
        assert tree["up/bias"].sharding.is_fully_replicated
    assert state.opt_state[0].count.sharding.is_fully_replicated


def test_the_mesh_does_not_change_the_parameters(toy, one, eight):
    states = [toy.make_state(mesh, optax.sgd(1.0))[1] for mesh in (one, eight)]
    for path, p in states[0].params.items():
        np.testing.assert_array_equal(p, states[1].params[path])


def test_nothing_is_allocated_by_a_plan(toy, eight):
    plan = train.plan_state(toy.build, optax.adam(1e-3), key=0, mesh=eight, carry=toy.carry())
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(plan.abstract))
    state = plan.init()
    planned = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), plan.abstract)
    made = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, planned, made))


def test_factored_moments_are_sharded_like_the_axis_they_keep(eight):
    def build(rngs):
        return nnx.Linear(
            128, 256, rngs=rngs, use_bias=False, kernel_metadata={"axes": ("embed", "mlp")}
        )

    optimizer = train.build_optimizer(train.OptimizerConfig("adafactor"), 10)
    plan = train.plan_state(build, optimizer, key=0, mesh=eight)
    found = {
        leaf.shape: leaf.sharding.spec
        for leaf in jax.tree.leaves(plan.abstract.opt_state)
        if len(leaf.shape) == 1 and leaf.shape[0] > 1
    }
    assert {shape: tuple(spec) for shape, spec in found.items()} == {
        (128,): ("fsdp",),
        (256,): ("tensor",),
    }


def test_moments_of_a_square_matrix_with_two_sharded_axes_are_replicated(eight):
    def build(rngs):
        return nnx.Linear(
            128, 128, rngs=rngs, use_bias=False, kernel_metadata={"axes": ("embed", "mlp")}
        )

    optimizer = train.build_optimizer(train.OptimizerConfig("adafactor"), 10)
    plan = train.plan_state(build, optimizer, key=0, mesh=eight)
    vectors = [leaf for leaf in jax.tree.leaves(plan.abstract.opt_state) if leaf.shape == (128,)]
    assert len(vectors) == 2
    assert all(leaf.sharding.is_fully_replicated for leaf in vectors)


def odd(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Linear(4, 3, rngs=rngs, kernel_metadata={"axes": ("embed", "mlp")})


def test_an_axis_that_does_not_divide_is_noted(eight):
    plan = train.plan_state(odd, optax.sgd(1.0), key=0, mesh=eight)
    assert plan.notes == ("kernel: axis 'mlp' of size 3 does not divide by 2",)


def test_an_axis_that_does_not_divide_is_refused_under_strict(eight):
    with pytest.raises(UsageError, match="kernel: axis 'mlp' of size 3"):
        train.plan_state(odd, optax.sgd(1.0), key=0, mesh=eight, strict=True)


def test_a_carry_whose_rows_do_not_divide_is_refused(toy, eight):
    with pytest.raises(UsageError, match=r"carry has shape \(6, 2\)"):
        toy.make_state(eight, optax.sgd(1.0), carry=toy.carry(6))


def test_the_users_key_outlives_the_steps(toy, one):
    key, optimizer = jax.random.key(5), optax.sgd(0.1)
    view, state, _ = toy.make_state(one, optimizer, key=key)
    step = train.make_step(view, toy.objective, optimizer, mesh=one)
    jax.block_until_ready(step(state, next(toy.Numbers())))
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and not key.is_deleted()
    jax.random.key_data(key).block_until_ready()
