"""Projections: how they start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.cpu.compiled import require_compiled
from jaxlab.nn.products import has_fast_derivative, matmul, require_known


def projection(
    in_dims: int | Sequence[int],
    out_dims: int | Sequence[int],
    axes: Sequence[str | None],
    *,
    scale: float = 1.0,
    use_bias: bool = False,
    kernel: Literal["plain", "pallas", "compiled"] = "plain",
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """A linear map over the last `len(in_dims)` axes, with logical axis names.

    The kernel `[*in_dims, *out_dims]` starts as a truncated normal of variance `scale / fan_in`
    (variance scaling), in float32; the product runs in `dtype`. With `use_bias` a bias
    `[*out_dims]` is added, which starts at 0. `kernel`: what computes it, see `products.matmul`.

    Raises:
      UsageError: an unknown kernel.
    """
    require_known(kernel)
    in_dims = (in_dims,) if isinstance(in_dims, int) else tuple(in_dims)
    return nnx.LinearGeneral(
        in_dims,
        out_dims,
        axis=tuple(range(-len(in_dims), 0)),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=jax.nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal"),
        kernel_metadata={"axes": tuple(axes)},
        bias_metadata={"axes": tuple(axes[len(in_dims) :])},
        dot_general=_project_compiled if kernel == "compiled" else project,
        rngs=rngs,
    )


def project(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    *,
    by: str = "plain",
    **kwargs: Any,
) -> jax.Array:
    """`lax.dot_general` of the last axes of `x` with the first of `kernel`.

    Where that has a faster derivative by the kernel, or is to be computed `by` compiled code, it is
    `products.matmul`.
    """
    (x_axes, kernel_axes), batch_axes = dimension_numbers
    n = len(x_axes)
    plain = tuple(kernel_axes) == tuple(range(n)) and not any(batch_axes) and precision is None
    last = tuple(a % x.ndim for a in x_axes) == tuple(range(x.ndim - n, x.ndim))
    asked = any(value is not None for value in kwargs.values())  # out_sharding, output dtype
    if by == "compiled":
        require_compiled(jnp.promote_types(x.dtype, kernel.dtype))
    if not (plain and last and not asked and has_fast_derivative(x, kernel)):
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **kwargs)
    rows, columns = x.shape[: x.ndim - n], kernel.shape[n:]
    inner = math.prod(kernel.shape[:n])
    kernel = kernel.reshape(inner, math.prod(columns))
    out = matmul(x.reshape(math.prod(rows), inner), kernel, kernel=by)
    return out.reshape(*rows, *columns)


# One object, as modules with different functions in them have different graphs.
_project_compiled = partial(project, by="compiled")
