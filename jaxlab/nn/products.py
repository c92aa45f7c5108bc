"""Matrix products whose derivatives are asked for in the form that runs fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from jaxlab.core import UsageError
from jaxlab.nn.bilinear import bilinear, on_one_cpu_device
from jaxlab.nn.cpu.compiled import TARGETS, require_compiled

KERNELS = ("plain", "pallas", "compiled")
"""What layers compute with: operations of JAX, fused attention for TPUs, C++ for CPUs."""


def require_known(kernel: str) -> None:
    """Refuses a kernel that is not one of `KERNELS`.

    Raises:
      UsageError: such a name.
    """
    if kernel not in KERNELS:
        raise UsageError(f"kernel={kernel!r}; it takes {', '.join(KERNELS)}")


def matmul(
    x: jax.Array,
    y: jax.Array,
    *,
    transpose_x: bool = False,
    transpose_y: bool = False,
    kernel: Literal["plain", "pallas", "compiled"] = "plain",
) -> jax.Array:
    """`op(x) @ op(y)` of matrices, `op` transposing where asked.

    In float32 on one CPU device it is a bilinear primitive of our own, for one reason: XLA is slow
    there at a product that contracts the rows of both factors, as the derivative by a kernel does,
    so that is computed from a transposed copy of its narrower factor (`benchmarks/products.py`
    measures it). The primitive can be differentiated any number of times in both modes, and
    batched. Elsewhere it is `dot_general`.

    With kernel 'compiled' that primitive runs the C++ of `compiled_products.cc`; under `jax.vmap`,
    and in a program of many devices, which the compiler cuts in pieces, it is `dot_general` too.

    Args:
      x: [m, k], or [k, m] with `transpose_x`.
      y: [k, n], or [n, k] with `transpose_y`.
      kernel: see above; 'pallas', which is for attention, is taken for 'plain'.

    Returns:
      [m, n] in float32, or in the dtype of the factors if that is wider.

    Raises:
      TypeError: inner sizes that differ.
      UsageError: an unknown kernel; 'compiled' where it cannot run, see `compiled`.
    """
    require_known(kernel)
    if x.shape[1 - transpose_x] != y.shape[transpose_y]:
        raise TypeError(
            f"matmul of {x.shape} and {y.shape} with transpose_x={transpose_x}, "
            f"transpose_y={transpose_y}: the inner sizes differ"
        )
    if kernel == "compiled":
        for factor in (x, y):
            require_compiled(factor.dtype)
        if on_one_cpu_device():
            return _compiled_matmul(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    if has_fast_derivative(x, y):
        return _matmul(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    return _product(x, y, transpose_x=transpose_x, transpose_y=transpose_y)


def has_fast_derivative(x: jax.Array, y: jax.Array) -> bool:
    """Whether `matmul` is the primitive: both factors in float32, on one CPU device."""
    return x.dtype == y.dtype == jnp.float32 and on_one_cpu_device()


def _product(x: jax.Array, y: jax.Array, *, transpose_x: bool, transpose_y: bool) -> jax.Array:
    axes = ((0 if transpose_x else 1,), (1 if transpose_y else 0,))
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return jax.lax.dot_general(x, y, (axes, ((), ())), preferred_element_type=dtype)


def _product_on_cpu(
    x: jax.Array, y: jax.Array, *, transpose_x: bool, transpose_y: bool
) -> jax.Array:
    product = partial(_product, transpose_x=False, transpose_y=False)
    if not (transpose_x and not transpose_y):
        return _product(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    copy = jax.lax.optimization_barrier  # or the compiler undoes the transposition
    if x.shape[1] <= y.shape[1]:
        return product(copy(x.T), y)
    # Row by row, once: or each of those who use it transposes it anew.
    return with_layout_constraint(copy(product(copy(y.T), x)).T, Layout((0, 1)))


def _compiled_product(
    x: jax.Array, y: jax.Array, *, transpose_x: bool, transpose_y: bool
) -> jax.Array:
    shape = _shape(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    call = jax.ffi.ffi_call(TARGETS["matrix_product"], jax.ShapeDtypeStruct(shape, jnp.float32))
    flops = np.int64(2 * x.size * shape[1])
    return call(x, y, transpose_x=transpose_x, transpose_y=transpose_y, flops=flops)


def _by_x(
    ct: jax.Array, x: Any, y: jax.Array, *, transpose_x: bool, transpose_y: bool, kernel: str
) -> jax.Array:
    if transpose_x:
        return matmul(y, ct, transpose_x=transpose_y, transpose_y=True, kernel=kernel)
    return matmul(ct, y, transpose_y=not transpose_y, kernel=kernel)


def _by_y(
    ct: jax.Array, x: jax.Array, y: Any, *, transpose_x: bool, transpose_y: bool, kernel: str
) -> jax.Array:
    if transpose_y:
        return matmul(ct, x, transpose_x=True, transpose_y=transpose_x, kernel=kernel)
    return matmul(x, ct, transpose_x=not transpose_x, kernel=kernel)


def _shape(x: Any, y: Any, *, transpose_x: bool, transpose_y: bool) -> tuple[int, ...]:
    return x.shape[transpose_x], y.shape[1 - transpose_y]


def _batched(xs: Any, axes: Any, **how: bool) -> tuple[jax.Array, int]:
    return jax.vmap(partial(_product, **how), in_axes=tuple(axes))(*xs), 0


def _primitive(name: str, compute: Callable[..., jax.Array], kernel: str):
    by = {"by_first": partial(_by_x, kernel=kernel), "by_second": partial(_by_y, kernel=kernel)}
    return bilinear(name, compute, shape=_shape, batched=_batched, **by)


_matmul = _primitive("matmul", _product_on_cpu, "plain")
_compiled_matmul = _primitive("compiled_matmul", _compiled_product, "compiled")
