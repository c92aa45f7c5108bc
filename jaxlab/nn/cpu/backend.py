"""The backend `compiled`: products and attention in C++, for CPUs with a compiler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxlab.nn import products
from jaxlab.nn.backend import Backend, Reading, require_fused, scan_but_last
from jaxlab.nn.bilinear import on_one_cpu_device
from jaxlab.nn.cpu.compiled import require_compiled
from jaxlab.nn.cpu.compiled_attention import CompiledReading, attend_readings
from jaxlab.nn.cpu.compiled_products import compiled_matmul, compiled_relu
from jaxlab.nn.norm import scale_queries
from jaxlab.nn.reading import Scale, SetReading, WindowReading

UNROLLED = 8
"""Segments of up to so many blocks are not made a loop: the program of each block is short."""


@dataclasses.dataclass(frozen=True)
class CompiledBackend(Backend):
    """C++ built for this processor, in float32.

    It computes products with parameters, ReLU, and all readings of a call in one pass, which scales
    queries and normalises keys on the way. It has reverse mode of differentiation alone, and no
    dropout of attention's weights. Products run as `dot_general` in a program of many devices.
    """

    name: ClassVar[str] = "compiled"
    normalises: ClassVar[bool] = True

    def require_platform(self) -> None:
        """Builds the library, unless a copy is kept; see `Backend` and `compiled`."""
        require_compiled(jnp.float32)

    def require_layer(self, window: int | None, attention_dropout: float) -> None:
        """See `Backend`: it needs a window and drops no weights."""
        require_fused(self.name, window, attention_dropout)

    def matmul(
        self,
        x: jax.Array,
        y: jax.Array,
        *,
        transpose_x: bool = False,
        transpose_y: bool = False,
    ) -> jax.Array:
        """See `Backend` and `compiled_matmul`."""
        return compiled_matmul(x, y, transpose_x=transpose_x, transpose_y=transpose_y)

    def project(self, x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """See `Backend`."""
        require_compiled(jnp.promote_types(x.dtype, kernel.dtype))
        return products.project(x, kernel, *args, matmul=compiled_matmul, **kwargs)

    def tied_logits(self, x: jax.Array, table_vd: jax.Array) -> jax.Array:
        """See `Backend`."""
        if not on_one_cpu_device():
            return super().tied_logits(x, table_vd)
        logits = compiled_matmul(x.reshape(-1, x.shape[-1]), table_vd, transpose_y=True)
        return logits.reshape(*x.shape[:-1], -1)

    def relu(self, x: jax.Array) -> jax.Array:
        """See `Backend`."""
        if x.dtype != jnp.float32 or not on_one_cpu_device():
            return super().relu(x)
        require_compiled(x.dtype)
        return compiled_relu(x)

    def queries(self, q_bthk: jax.Array, scale: Any) -> tuple[jax.Array, Scale]:
        """See `Backend`: learned scales are left to `read`."""
        if scale is None:
            return scale_queries(q_bthk, None), None
        return q_bthk, jnp.abs(scale[...])

    def keys(self, k_bshk: jax.Array) -> jax.Array:
        """See `Backend`: `read` normalises them."""
        return k_bshk

    def read(self, *readings: Reading) -> jax.Array:
        """See `Backend`: one pass over all readings."""
        return attend_readings(*map(_compiled, readings))

    def read_one(self, reading: Reading) -> jax.Array:
        """See `Backend`."""
        return self.read(reading)

    def scan(
        self, block: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any
    ) -> tuple[Any, Any]:
        """See `Backend`: few blocks are unrolled; in a loop only products are saved."""
        remat = functools.partial(jax.checkpoint, policy=_save_products)
        return scan_but_last(block, carry, xs, unrolled=UNROLLED, remat=remat)


def _compiled(reading: Reading) -> CompiledReading:
    if isinstance(reading, WindowReading):
        return _compiled_window(reading)
    return _compiled_set(reading)


def _compiled_window(reading: WindowReading) -> CompiledReading:
    heads, window = reading.heads, reading.window
    farthest = reading.nearest + window - 1
    place_t = np.arange(heads.q.shape[1]) + window  # of each query among the keys
    return CompiledReading(
        heads.q,
        (reading.old_k, heads.k),
        (reading.old_v, heads.v),
        place_t[None] - jnp.minimum(reading.segment.ages(), farthest),
        place_t[None] - reading.nearest,
        bias=None if reading.bias is None else reading.bias(np.arange(farthest + 1)),
        offset=window,
        scale=heads.scale,
        unit=(False, heads.unit),
    )


def _compiled_set(reading: SetReading) -> CompiledReading:
    last = reading.read.num_keys - 1
    return CompiledReading(
        reading.q,
        reading.read.keys,
        reading.read.values,
        0,
        last if reading.reads is None else jnp.where(reading.reads, last, -1),
        mask=reading.bias,
        scale=reading.scale,
        unit=reading.read.unit,
    )


def _save_products(primitive: jax.extend.core.Primitive, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: saves products and compiled code, recomputes the rest.

    Saving what is cheap to compute would cost more memory, and time to write and read it.
    """
    return primitive.name in ("dot_general", "matmul", "compiled_matmul", "ffi_call")
