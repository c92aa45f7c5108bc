"""Projections: linear maps with names for their axes, and how they start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.backend import PLAIN, Backend, Projection


def projection(
    in_dims: int | Sequence[int],
    out_dims: int | Sequence[int],
    axes: Sequence[str | None],
    *,
    scale: float = 1.0,
    use_bias: bool = False,
    backend: Backend = PLAIN,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """A linear map over the last `len(in_dims)` axes, with logical axis names.

    The kernel `[*in_dims, *out_dims]` starts as a truncated normal of variance `scale / fan_in`
    (variance scaling), in float32; `backend` computes the product, in `dtype`. With `use_bias`, a
    bias `[*out_dims]` that starts at 0 is added.
    """
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
        dot_general=Projection(backend),
        rngs=rngs,
    )
