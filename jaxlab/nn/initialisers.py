"""Projections and how they start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


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
        rngs=rngs,
    )
