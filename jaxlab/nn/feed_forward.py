"""The position-wise feed-forward layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.activations import ACTIVATIONS, relu
from jaxlab.nn.backend import PLAIN, Backend
from jaxlab.nn.initialisers import projection


class FeedForward(nnx.Module):
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` when gated.

    Args:
      width: d, of input and output.
      mlp_dim: f, of the hidden layer.
      activation: a name of `ACTIVATIONS`.
      gated: the GLU variant (arXiv 2002.05202); 'gelu' gives GEGLU, 'silu' SwiGLU.
      use_bias: of every projection.
      backend: computes products and ReLU.
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
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        how = {"use_bias": use_bias, "backend": backend, "dtype": dtype, "rngs": rngs}

        def into() -> nnx.LinearGeneral:
            return projection(width, mlp_dim, ("embed", "mlp"), **how)

        self.up = into()
        self.gate = into() if gated else None
        self.down = projection(mlp_dim, width, ("mlp", "embed"), **how)
        self.activation, self.backend = activation, backend

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] to [..., d]."""
        act = ACTIVATIONS[self.activation]
        if act is relu:
            act = self.backend.relu
        hidden = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(hidden)
