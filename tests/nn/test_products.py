from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import UsageError, make_mesh, use_mesh
from jaxlab.nn.cpu.compiled_products import compiled_matmul
from jaxlab.nn.products import matmul
from jaxlab.planning.hlo import read_program


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(x, y, transpose_x, transpose_y):
    return (x.T if transpose_x else x) @ (y.T if transpose_y else y)


@pytest.mark.parametrize(
    ("m", "k", "n", "transpose_x", "transpose_y"),
    [
        (*sizes, *how)
        for sizes in [(3, 4, 5), (5, 4, 3)]
        for how in itertools.product([False, True], repeat=2)
    ],
)
def test_values_and_derivatives_of_both_modes_equal_the_plain_product(
    m, k, n, transpose_x, transpose_y, backend
):
    x = numbers(k, m) if transpose_x else numbers(m, k)
    y = numbers(n, k, seed=1) if transpose_y else numbers(k, n, seed=1)
    ours = lambda x, y: jnp.sin(  # noqa: E731
        backend.matmul(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    ).sum()
    theirs = lambda x, y: jnp.sin(plain(x, y, transpose_x, transpose_y)).sum()  # noqa: E731
    step = (numbers(*x.shape, seed=2), numbers(*y.shape, seed=3))

    def derivatives(f):
        gradient = jax.grad(f, argnums=(0, 1))
        return jax.jvp(gradient, (x, y), step), jax.jvp(f, (x, y), step)

    for got, want in zip(
        jax.tree.leaves(jax.jit(lambda: derivatives(ours))()),
        jax.tree.leaves(derivatives(theirs)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("rows", [1, 24, 25, 97, 230])
@pytest.mark.parametrize("transposed", [*itertools.product([False, True], repeat=2)], ids=str)
def test_compiled_products_of_any_size_are_those_of_float64(rows, transposed):
    for width, inner in [(1, 1), (7, 300), (33, 17), (260, 64), (600, 530), (64, 0)]:
        x, y = numbers(rows, inner), numbers(inner, width, seed=1)
        x, y = (a.T.copy() if turn else a for a, turn in zip((x, y), transposed, strict=True))
        got = compiled_matmul(x, y, transpose_x=transposed[0], transpose_y=transposed[1])
        want = plain(np.asarray(x, np.float64), np.asarray(y, np.float64), *transposed)
        np.testing.assert_allclose(got, want, atol=1e-5 * np.sqrt(inner) + 1e-30, rtol=0)


@pytest.mark.usefixtures("compiler")
def test_compiled_products_say_their_flops_to_plans():
    x, y = numbers(7, 5), numbers(5, 3, seed=1)
    gradient = jax.grad(lambda x, y: jnp.sin(compiled_matmul(x, y)).sum(), (0, 1))
    program = read_program(jax.jit(gradient).lower(x, y).compile().as_text())
    assert program.kernel_flops == program.flops == 3 * 2 * 7 * 5 * 3


@pytest.mark.usefixtures("compiler")
def test_compiled_products_are_for_float32():
    x = numbers(2, 3).astype(jnp.bfloat16)
    with pytest.raises(UsageError, match="backend 'compiled' computes in float32, not in bfloat16"):
        compiled_matmul(x, numbers(3, 2))


def test_a_batch_of_one_factor_equals_a_loop(backend):
    x, y = numbers(3, 2, 4), numbers(4, 5, seed=1)
    got = jax.vmap(backend.matmul, in_axes=(0, None))(x, y)
    np.testing.assert_allclose(got, jnp.stack([row @ y for row in x]), rtol=1e-5)


def test_half_precision_is_summed_in_single():
    x, y = numbers(2, 300).astype(jnp.bfloat16), numbers(300, 2, seed=1).astype(jnp.bfloat16)
    got = matmul(x, y)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
        got, np.asarray(x, np.float32) @ np.asarray(y, np.float32), rtol=1e-4, atol=1e-4
    )


def slow_products(mesh):
    """How many products of the gradient contract the rows of both factors."""
    x, y = numbers(6, 4), numbers(4, 5, seed=1)
    gradient = jax.grad(lambda x, y: jnp.sin(matmul(x, y)).sum(), argnums=(0, 1))
    with use_mesh(mesh):
        text = jax.jit(gradient).lower(x, y).as_text()
    return text.count("contracting_dims = [0] x [0]")


def test_one_device_is_spared_the_slow_product_and_several_get_the_plain_one():
    assert slow_products(make_mesh(devices=jax.devices()[:1])) == 0
    assert slow_products(make_mesh(devices=jax.devices()[:2])) == 1


def test_inner_sizes_that_differ_are_named():
    with pytest.raises(TypeError, match="inner sizes differ"):
        matmul(numbers(2, 3), numbers(4, 5))
