"""The position-wise feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.initialisers import projection


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`; its derivative, 0 at 0, keeps the result instead of the input."""
    return jnp.maximum(x, 0)


relu.defjvps(lambda tangent, result, _: jnp.where(result > 0, tangent, 0))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` when gated.

    Args:
      width: d, of input and output.
      mlp_dim: f, of the hidden layer.
      activation: a name of `ACTIVATIONS`.
      gated: GLU variant (arXiv 2002.05202); 'gelu' gives GEGLU, 'silu' SwiGLU.
      use_bias: of every projection.
      kernel: what computes them, see `products.matmul`.
      dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        *,
        activation: str = "relu",
        gated: bool = False,
        use_bias: bool = False,
        kernel: Literal["plain", "pallas", "compiled"] = "plain",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        how = {"use_bias": use_bias, "kernel": kernel, "dtype": dtype, "rngs": rngs}

        def into() -> nnx.LinearGeneral:
            return projection(width, mlp_dim, ("embed", "mlp"), **how)

        self.up = into()
        self.gate = into() if gated else None
        self.down = projection(mlp_dim, width, ("mlp", "embed"), **how)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] to [..., d]."""
        act = ACTIVATIONS[self.activation]
        hidden = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(hidden)
