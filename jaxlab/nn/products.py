"""Matrix products whose derivatives are computed in the form that runs fastest."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from jaxlab.nn.bilinear import bilinear, on_one_cpu_device

Matmul = Callable[..., jax.Array]
"""`matmul` or another function with its signature."""


def matmul(
    x: jax.Array, y: jax.Array, *, transpose_x: bool = False, transpose_y: bool = False
) -> jax.Array:
    """`op(x) @ op(y)` of matrices, where `op` transposes if asked to.

    In float32 on one CPU device this is a bilinear primitive of our own, for one reason: XLA is
    slow there at products that contract the rows of both factors, as the derivative by a kernel
    does. The primitive computes those from a transposed copy of the narrower factor
    (`benchmarks/products.py` measures the gain). It can be batched, and differentiated any number
    of times in both modes. Elsewhere it is `dot_general`.

    Args:
      x: [m, k], or [k, m] with `transpose_x`.
      y: [k, n], or [n, k] with `transpose_y`.

    Returns:
      [m, n] in float32, or in the dtype of the factors if that is wider.

    Raises:
      TypeError: inner sizes that differ.
    """
    require_inner(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    if has_fast_derivative(x, y):
        return _matmul(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    return product(x, y, transpose_x=transpose_x, transpose_y=transpose_y)


def require_inner(x: jax.Array, y: jax.Array, *, transpose_x: bool, transpose_y: bool) -> None:
    """Refuses factors whose inner sizes differ.

    Raises:
      TypeError: names the shapes.
    """
    if x.shape[1 - transpose_x] != y.shape[transpose_y]:
        raise TypeError(
            f"matmul of {x.shape} and {y.shape} with transpose_x={transpose_x}, "
            f"transpose_y={transpose_y}: the inner sizes differ"
        )


def has_fast_derivative(x: jax.Array, y: jax.Array) -> bool:
    """Whether `matmul` is the primitive: both factors in float32, on one CPU device."""
    return x.dtype == y.dtype == jnp.float32 and on_one_cpu_device()


def project(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    *,
    matmul: Matmul = matmul,
    **kwargs: Any,
) -> jax.Array:
    """`lax.dot_general` of the last axes of `x` with the first axes of `kernel`.

    On one CPU device in float32 it is `matmul`, whose derivative by the kernel is faster.
    """
    (x_axes, kernel_axes), batch_axes = dimension_numbers
    n = len(x_axes)
    plain = tuple(kernel_axes) == tuple(range(n)) and not any(batch_axes) and precision is None
    last = tuple(a % x.ndim for a in x_axes) == tuple(range(x.ndim - n, x.ndim))
    asked = any(value is not None for value in kwargs.values())  # out_sharding, output dtype
    if not (plain and last and not asked and has_fast_derivative(x, kernel)):
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **kwargs)
    rows, columns = x.shape[: x.ndim - n], kernel.shape[n:]
    inner = math.prod(kernel.shape[:n])
    out = matmul(x.reshape(math.prod(rows), inner), kernel.reshape(inner, math.prod(columns)))
    return out.reshape(*rows, *columns)


def product(x: jax.Array, y: jax.Array, *, transpose_x: bool, transpose_y: bool) -> jax.Array:
    """`matmul` as `dot_general`."""
    axes = ((0 if transpose_x else 1,), (1 if transpose_y else 0,))
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return jax.lax.dot_general(x, y, (axes, ((), ())), preferred_element_type=dtype)


def matmul_primitive(name: str, compute: Matmul, again: Callable[[], Matmul]) -> Matmul:
    """A bilinear primitive for `op(x) @ op(y)`.

    Args:
      name: shown in jaxprs.
      compute: computes the product.
      again: returns the function that computes the two transposes, which are products too.
    """

    def by_x(ct, x, y, *, transpose_x, transpose_y):
        if transpose_x:
            return again()(y, ct, transpose_x=transpose_y, transpose_y=True)
        return again()(ct, y, transpose_y=not transpose_y)

    def by_y(ct, x, y, *, transpose_x, transpose_y):
        if transpose_y:
            return again()(ct, x, transpose_x=True, transpose_y=transpose_x)
        return again()(x, ct, transpose_x=not transpose_x)

    return bilinear(
        name, compute, shape=product_shape, by_first=by_x, by_second=by_y, batched=_batched
    )


def product_shape(x: Any, y: Any, *, transpose_x: bool, transpose_y: bool) -> tuple[int, ...]:
    """The shape of `op(x) @ op(y)`."""
    return x.shape[transpose_x], y.shape[1 - transpose_y]


def _batched(xs: Any, axes: Any, **how: bool) -> tuple[jax.Array, int]:
    return jax.vmap(lambda x, y: product(x, y, **how), in_axes=tuple(axes))(*xs), 0


def _product_on_cpu(
    x: jax.Array, y: jax.Array, *, transpose_x: bool, transpose_y: bool
) -> jax.Array:
    straight = partial(product, transpose_x=False, transpose_y=False)
    if not (transpose_x and not transpose_y):
        return product(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    copy = jax.lax.optimization_barrier  # without it the compiler undoes the transposition
    if x.shape[1] <= y.shape[1]:
        return straight(copy(x.T), y)
    # Laid out row by row here, once: otherwise each use of it transposes it again.
    return with_layout_constraint(copy(straight(copy(y.T), x)).T, Layout((0, 1)))


_matmul = matmul_primitive("matmul", _product_on_cpu, lambda: matmul)
