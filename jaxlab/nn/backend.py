"""What computes a layer's products and attention: the calls that layers make, in plain operations.

`Backend` itself is the plain one. `nn.cpu` and `nn.tpu` hold others, which override what they do
faster; `nn.backends` makes one from its name. Layers take a backend and never ask for its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlab.core import UsageError
from jaxlab.nn import products
from jaxlab.nn.activations import relu
from jaxlab.nn.norm import l2_normalise, scale_queries
from jaxlab.nn.reading import Scale, SetReading, WindowReading, blocks_by_head
from jaxlab.nn.tiles import attend_blocks, attend_heads

Reading = WindowReading | SetReading


@dataclasses.dataclass(frozen=True)
class Backend:
    """Plain JAX operations: every platform, dtype and mode of differentiation.

    Backends of one kind compare equal, so they are static parts of modules.

    Attributes:
      name: what configs and command lines call it.
      normalises: whether `read` normalises keys, and scales queries, that it is told to. They then
        come as they were projected; the plain backend scales and normalises them before.
    """

    name: ClassVar[str] = "plain"
    normalises: ClassVar[bool] = False

    def require_platform(self) -> None:
        """Refuses a program for a platform that the backend does not run on.

        Raises:
          UsageError: such a platform; something that the backend needs and that is not installed.
        """

    def require_layer(self, window: int | None, attention_dropout: float) -> None:
        """Refuses attention that the backend cannot compute.

        Raises:
          UsageError: names the field, and what to set instead.
        """

    def matmul(
        self,
        x: jax.Array,
        y: jax.Array,
        *,
        transpose_x: bool = False,
        transpose_y: bool = False,
    ) -> jax.Array:
        """`op(x) @ op(y)` of matrices, see `products.matmul`."""
        return products.matmul(x, y, transpose_x=transpose_x, transpose_y=transpose_y)

    def project(self, x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """A product with a parameter: `lax.dot_general`, see `products.project`."""
        return products.project(x, kernel, *args, **kwargs)

    def tied_logits(self, x: jax.Array, table_vd: jax.Array) -> jax.Array:
        """Products [..., v] of vectors [..., d] with the rows of a table, in float32."""
        return jnp.einsum("...d,vd->...v", x, table_vd, preferred_element_type=jnp.float32)

    def relu(self, x: jax.Array) -> jax.Array:
        """`max(x, 0)`."""
        return relu(x)

    def queries(self, q_bthk: jax.Array, scale: Any) -> tuple[jax.Array, Scale]:
        """Queries in the form that `read` takes.

        Args:
          q_bthk: as they were projected.
          scale: the learned scales [h] of the logits; None: queries are divided by sqrt(k).

        Returns:
          Queries [b, t, h, k], and the scale that `read` still has to apply; None: they are scaled.
        """
        return scale_queries(q_bthk, scale), None

    def keys(self, k_bshk: jax.Array) -> jax.Array:
        """Keys to normalise in the form that `read` takes: normalised, unless it `normalises`."""
        return l2_normalise(k_bshk)

    def read(self, *readings: Reading) -> jax.Array:
        """What the heads of each reading find, side by side: [b, t, h of all readings, k].

        A query that sees no key gives zero.
        """
        values = [self.read_one(reading) for reading in readings]
        return values[0] if len(values) == 1 else jnp.concatenate(values, axis=-2)

    def read_one(self, reading: Reading) -> jax.Array:
        """`read` of one reading, [b, t, h, k]."""
        if isinstance(reading, WindowReading):
            return self.read_window(reading)
        return self.read_set(reading)

    def read_window(self, reading: WindowReading) -> jax.Array:
        """`read` of a window, [b, t, h, k]."""
        out_hbjtk = attend_blocks(*reading.tiles(), reading.kept)
        return out_hbjtk.transpose(1, 2, 3, 0, 4).reshape(reading.heads.q.shape)

    def read_set(self, reading: SetReading) -> jax.Array:
        """`read` of a set of keys, [b, t, h, k]."""
        q, (keys, values) = reading.q, reading.read.by_head(reading.q.shape[2])
        if keys.ndim == 4:
            out_hbtk = attend_heads(q.transpose(2, 0, 1, 3), keys, values, reading.bias)
            out = out_hbtk.transpose(1, 2, 0, 3)
        else:  # every block of queries has keys of its own
            q_hbjtk = blocks_by_head(q, q.shape[1] // keys.shape[2])
            problems = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (q_hbjtk, keys, values))
            out_hbjtk = attend_heads(*problems).reshape(q_hbjtk.shape)
            out = out_hbjtk.transpose(1, 2, 3, 0, 4).reshape(q.shape)
        return out if reading.reads is None else jnp.where(reading.reads[:, :, None, None], out, 0)

    def scan(
        self, block: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any
    ) -> tuple[Any, Any]:
        """`jax.lax.scan` over the blocks of a segment."""
        return scan_but_last(block, carry, xs)


PLAIN = Backend()
"""The plain backend, the default of every layer."""


def scan_but_last(
    block: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    *,
    unrolled: int = 1,
    remat: Callable[[Any], Any] = lambda block: block,
) -> tuple[Any, Any]:
    """`jax.lax.scan` whose last blocks are outside the loop.

    What the last block leaves in the carry often has no gradient, as when the carry goes on in the
    next step; outside the loop, it is then not differentiated.

    Args:
      block: `(carry, x) -> (carry, y)`.
      carry: before the first block.
      xs: arrays with one row for each block.
      unrolled: up to so many blocks are not made a loop at all; at least 1.
      remat: wraps the block inside the loop.
    """
    num_blocks = jax.tree.leaves(xs)[0].shape[0]
    in_loop = 0 if num_blocks <= unrolled else num_blocks - 1
    ys = []
    if in_loop:
        carry, first = jax.lax.scan(remat(block), carry, jax.tree.map(lambda x: x[:in_loop], xs))
        ys.append(first)
    for i in range(in_loop, num_blocks):
        carry, y = block(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        ys.append(jax.tree.map(lambda y: y[None], y))
    return carry, jax.tree.map(lambda *y: jnp.concatenate(y), *ys)


@dataclasses.dataclass(frozen=True)
class Projection:
    """`Backend.project` as the `dot_general` of a module; unlike methods, equal if backends are."""

    backend: Backend

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        """See `Backend.project`."""
        return self.backend.project(*args, **kwargs)


def require_dropout_rate(rate: float) -> None:
    """Refuses an `attention_dropout` outside [0, 1).

    Raises:
      UsageError: such a rate.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"attention_dropout={rate} must lie in [0, 1)")


def require_fused(name: str, window: int | None, attention_dropout: float) -> None:
    """Refuses what no backend with attention of its own computes.

    Raises:
      UsageError: attention without a window; dropout of its weights.
    """
    if window is None:
        raise UsageError(f"backend {name!r} needs a window; set window, or take backend='plain'")
    if attention_dropout:
        raise UsageError(
            f"attention_dropout={attention_dropout} with backend {name!r}, which drops no weights; "
            "set attention_dropout=0.0 or backend='plain'"
        )
