"""What every registered model promises on meshes: the numbers of one device, from shards."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import inspect
import math
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlab import models, train
from jaxlab.core import (
    RULES,
    Loss,
    MeshConfig,
    UsageError,
    View,
    batch_sharding,
    make_mesh,
    matches,
    named,
)

ROWS = 8
MESHES = {
    "data=8": MeshConfig(data=8),
    "data=2, fsdp=4": MeshConfig(data=2, fsdp=4),
    "data=2, fsdp=2, tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp=2, sequence=2, tensor=2": MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
}
ONE = "one device"
# Sums over rows, tokens and features come in another order. float32 rounds each by 6e-8 and a
# gradient passes some hundreds of them: 1e-5 of its largest entry is ten times what was seen, and
# a thousandth of what a forgotten shard would change.
TOLERANCE = 1e-5
# Biases that nothing depends on: softmax takes a constant off all keys, a norm takes one off all
# rows (batch) or all channels (layer). What is left of their gradients is rounding.
WITHOUT_EFFECT = {
    "vit*": "*/attention/key/bias",
    "vgg": "*/conv/bias",
    "mlp_mixer": "*/attention/mlp/down/bias",
    "mlp/residual": "blocks/0/dense/bias",
}


def objective(model, batch, carry, key) -> Loss:
    """A loss for any model: its prediction along a fixed direction, and squared.

    What a model carries from one step to the next comes from and goes to the state; in every
    other row a document starts half way.
    """
    if carry is None:
        out = model(*batch["args"])
        out = out[0] if isinstance(out, tuple) else out
    else:
        tokens_bt = batch["args"][0]
        start_bt = jnp.zeros(tokens_bt.shape, bool).at[::2, tokens_bt.shape[1] // 2].set(True)
        out, carry = model(tokens_bt, carry, start_bt)
    direction = jnp.cos(jnp.arange(out.size // out.shape[0], dtype=jnp.float32) ** 2)
    out = out.reshape(out.shape[0], -1)
    value = jnp.mean(out * direction + out**2)
    return Loss(value, jnp.float32(out.shape[0]), {}, carry)


# The trace of optax with no decay is the gradient itself, placed like the parameters.
OPTIMIZER = optax.chain(optax.trace(0.0), optax.scale(-0.01))


def mesh_of(name):
    if name == ONE:
        return make_mesh(MeshConfig(data=1), jax.devices()[:1])
    return make_mesh(MESHES[name], jax.devices()[:8])


def init_carry(entry):
    return entry.build(nnx.Rngs(0)).init_carry(ROWS)


@functools.cache
def plan_of(model, mesh_name):
    entry, mesh = models.registered(model), mesh_of(mesh_name)
    carry = functools.partial(init_carry, entry) if hasattr(entry.model, "init_carry") else None
    plan = train.plan_state(entry.build, OPTIMIZER, key=0, mesh=mesh, strict=True, carry=carry)
    return plan.with_metrics(("loss", "grad_norm"))


@functools.cache
def first_state(model):
    """The state as one device makes it."""
    return plan_of(model, ONE).init()


def moved(state):
    """The state with all parameters away from where they start: zeros hide what lies before."""

    def move(path, p):
        return p + 0.1 * jax.random.normal(named(jax.random.key(1), path), p.shape, p.dtype)

    params = {path: move(path, p) for path, p in state.params.items()}
    return dataclasses.replace(state, params=params)


@functools.cache
def trained(model, mesh_name):
    """The losses of two steps of one program, and the state after them.

    A compiled program takes no state whose placement is another than that it was made for: that of
    the first step is the placement of the second.
    """
    plan, mesh = plan_of(model, mesh_name), mesh_of(mesh_name)
    state = jax.device_put(jax.tree.map(jnp.copy, moved(first_state(model))), plan.shardings)
    step, totals = train.make_step(plan.view, objective, OPTIMIZER, mesh=mesh), [0.0]
    batch = {"args": tuple(map(jnp.asarray, models.registered(model).inputs(ROWS)))}
    compiled = step.lower(plan.abstract, batch).compile()
    for _ in range(2):
        state = compiled(state, jax.device_put(batch, batch_sharding(mesh)))
        totals.append(float(state.metrics["loss"][0]) / ROWS)
    return np.diff(totals), state


def has_a_sequence(model):
    return models.registered(model).model is models.TransformerLM


def cases(meshes):
    """Models and meshes; one that splits sequences is for models that have some."""
    return pytest.mark.parametrize(
        ("model", "mesh"),
        [
            (model, mesh)
            for model in models.names()
            for mesh in meshes
            if "sequence" not in mesh or has_a_sequence(model)
        ],
    )


def has_no_effect(model, path):
    return any(
        fnmatch.fnmatch(model, name) and matches(path, pattern)
        for name, pattern in WITHOUT_EFFECT.items()
    )


@cases(MESHES)
def test_loss_and_gradients_are_those_of_one_device(model, mesh):
    losses, state = trained(model, mesh)
    wanted, reference = trained(model, ONE)
    np.testing.assert_allclose(losses, wanted, rtol=TOLERANCE)
    grads, expected = (s.opt_state[0].trace for s in (state, reference))
    assert grads.keys() == expected.keys() == state.params.keys()
    of_all = max(float(jnp.abs(grad).max()) for grad in expected.values())
    for path, grad in expected.items():
        largest = float(jnp.abs(grad).max())
        if has_no_effect(model, path):
            assert largest < 1e-6 * of_all, f"{path} has an effect"
            continue
        assert largest > 0, f"{path} has no gradient: the case says nothing about it"
        np.testing.assert_allclose(
            grads[path], grad, rtol=0, atol=TOLERANCE * largest, err_msg=path
        )


@cases(MESHES)
def test_the_carry_of_the_second_step_is_that_of_one_device(model, mesh):
    found, wanted = (trained(model, name)[1].carry for name in (mesh, ONE))
    for path, expected in jax.tree_util.tree_leaves_with_path(wanted):
        assert jnp.any(expected != 0), f"{path} carries nothing: the case says nothing about it"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * abs(b).max()),
        found,
        wanted,
    )


def bytes_on_each_device(arrays):
    held = dict.fromkeys(jax.devices()[:8], 0)
    for array in jax.tree.leaves(arrays):
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return set(held.values())


@cases(["data=2, fsdp=4", "data=2, fsdp=2, tensor=2"])
def test_parameters_and_gradients_are_split_over_fsdp_and_tensor(model, mesh):
    _, state = trained(model, mesh)
    total = sum(p.nbytes for p in state.params.values())
    for tree in (state.params, state.opt_state):
        (held,) = bytes_on_each_device(tree)
        # Little stays whole or is split by half of the devices only: norms, scales of heads.
        assert total / 4 <= held < 1.15 * total / 4


@pytest.mark.parametrize("model", models.names())
def test_the_state_is_born_sharded_with_the_numbers_of_one_device(model):
    plan = plan_of(model, "data=2, fsdp=4")
    init = plan.lower_init().compile()
    most = max(p.size for p in plan.abstract.params.values())
    largest = {p for p in plan.abstract.params.values() if p.size == most}
    text = init.as_text()
    for p in largest:
        shard = p.sharding.shard_shape(p.shape)
        assert math.prod(shard) * 4 == most
        assert f"f32{list(shard)}".replace(" ", "") in text
        assert f"f32{list(p.shape)}".replace(" ", "") not in text, "whole on a device"
    state = init(plan.key)
    for path, p in first_state(model).params.items():
        np.testing.assert_allclose(state.params[path], p, rtol=1e-6, err_msg=path)
        assert state.params[path].sharding == plan.shardings.params[path]


@pytest.mark.parametrize("model", models.names())
def test_every_parameter_names_its_logical_axes(model):
    view = View.abstract(lambda: models.registered(model).build(nnx.Rngs(0)))
    known = {logical for logical, _ in RULES}
    for path, p in view.params.items():
        axes = view.axes[path]
        assert axes is not None, f"{path} {p.shape} has no axes; axes=(None,) leaves it whole"
        assert len(axes) == p.ndim, f"{path}: axes {axes} for shape {p.shape}"
        assert {axis for axis in axes if axis is not None} <= known, f"{path}: axes {axes}"
        assert p.ndim == 1 or any(axes), f"{path} {p.shape} is large and never sharded"


def model_classes():
    """The modules in the files of `models/` that are made from a config, not parts of others."""
    for info in pkgutil.iter_modules(models.__path__):
        module = importlib.import_module(f"{models.__name__}.{info.name}")
        for _, thing in inspect.getmembers(module, inspect.isclass):
            own = thing.__module__ == module.__name__
            if own and issubclass(thing, nnx.Module) and hasattr(thing, "from_config"):
                yield thing


def test_every_public_model_is_registered():
    classes = set(model_classes()) - {models.Classifier}  # which others derive from
    assert classes, "found no model at all"
    assert classes == {models.registered(name).model for name in models.names()}
    exported = {thing for thing in vars(models).values() if inspect.isclass(thing)}
    assert classes <= exported


def test_names_that_are_taken_or_unknown_are_told():
    entry = models.registered(models.names()[0])
    with pytest.raises(UsageError, match="is registered already, for "):
        models.register(entry.name, entry.model, entry.config, entry.inputs)
    with pytest.raises(UsageError, match="no model 'transformer_lm/plan'.*plain"):
        models.registered("transformer_lm/plan")
