"""Projections: how they start, and how they are differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx
from jax.interpreters import ad, batching, mlir


def projection(
    in_dims: int | Sequence[int],
    out_dims: int | Sequence[int],
    axes: Sequence[str | None],
    *,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """A linear map over the last `len(in_dims)` axes, without bias, with logical axis names.

    The kernel [*in_dims, *out_dims] starts as a truncated normal of variance `scale / fan_in`
    (variance scaling), in float32; the product runs in `dtype`.
    """
    in_dims = (in_dims,) if isinstance(in_dims, int) else tuple(in_dims)
    return nnx.LinearGeneral(
        in_dims,
        out_dims,
        axis=tuple(range(-len(in_dims), 0)),
        use_bias=False,
        dtype=dtype,
        kernel_init=jax.nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal"),
        kernel_metadata={"axes": tuple(axes)},
        dot_general=project,
        rngs=rngs,
    )


def project(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **kwargs: Any
) -> jax.Array:
    """`lax.dot_general` of the last axes of `x` with the first of `kernel`.

    On one CPU device it is `matmul`, whose derivative by the kernel is faster there.
    """
    (x_axes, kernel_axes), batch_axes = dimension_numbers
    n = len(x_axes)
    plain = tuple(kernel_axes) == tuple(range(n)) and not any(batch_axes) and precision is None
    last = tuple(a % x.ndim for a in x_axes) == tuple(range(x.ndim - n, x.ndim))
    asked = any(value is not None for value in kwargs.values())  # out_sharding, output dtype
    if not (plain and last and not asked and _on_one_cpu_device()):
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **kwargs)
    rows, columns = x.shape[: x.ndim - n], kernel.shape[n:]
    inner = math.prod(kernel.shape[:n])
    out = matmul(x.reshape(math.prod(rows), inner), kernel.reshape(inner, math.prod(columns)))
    return out.reshape(*rows, *columns)


def matmul(x_ni: jax.Array, kernel_io: jax.Array) -> jax.Array:
    """`x @ kernel`, differentiable any number of times in both modes, batched and sharded.

    It is a bilinear primitive of our own for one reason: the derivative by the kernel contracts
    the rows of both factors, and must be asked for as `x^T ct`. JAX asks for `(ct^T x)^T`, which
    XLA on a CPU runs at half of the speed, after a slow transposing copy.
    """
    return _matmul_p.bind(x_ni, kernel_io)


def _product(x_ni: jax.Array, kernel_io: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x_ni, kernel_io, (((1,), (0,)), ((), ())))


def _by_x(ct_no: jax.Array, x_ni: Any, kernel_io: jax.Array) -> jax.Array:
    return jax.lax.dot_general(ct_no, kernel_io, (((1,), (1,)), ((), ())))


def _by_kernel(ct_no: jax.Array, x_ni: jax.Array, kernel_io: Any) -> jax.Array:
    return jax.lax.dot_general(x_ni, ct_no, (((0,), (0,)), ((), ())))


_matmul_p = jax.extend.core.Primitive("matmul")
_matmul_p.def_impl(jax.jit(_product))
_matmul_p.def_abstract_eval(
    lambda x, kernel: jax.core.ShapedArray((x.shape[0], kernel.shape[1]), x.dtype)
)
ad.defbilinear(_matmul_p, _by_x, _by_kernel)
mlir.register_lowering(_matmul_p, mlir.lower_fun(_product, multiple_results=False))
batching.primitive_batchers[_matmul_p] = lambda xs, axes: (
    jax.vmap(_product, in_axes=tuple(axes))(*xs),
    0,
)


def _on_one_cpu_device() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() == "cpu" and (mesh.empty or mesh.size == 1)
