"""The position-wise feed-forward layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.bilinear import on_one_cpu_device
from jaxlab.nn.cpu.compiled import TARGETS, require_compiled
from jaxlab.nn.initialisers import projection


def relu(x: jax.Array, *, kernel: Literal["plain", "pallas", "compiled"] = "plain") -> jax.Array:
    """`max(x, 0)`; its derivative, 0 at 0, keeps the result instead of the input.

    XLA may find it cheaper for the derivative to compute it again from the input, and then keeps
    both. With kernel 'compiled', in float32 on one CPU device, it is compiled code, which XLA does
    not look into: the input goes.
    """
    if kernel == "compiled" and x.dtype == jnp.float32 and on_one_cpu_device():
        require_compiled(x.dtype)
        return _compiled_relu(x)
    return _relu(x)


@jax.custom_jvp
def _relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


@jax.custom_jvp
def _compiled_relu(x: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call(TARGETS["rectify"], result, vmap_method="broadcast_all")(x)


for _each in (_relu, _compiled_relu):
    _each.defjvps(lambda tangent, result, _: jnp.where(result > 0, tangent, 0))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}


class FeedForward(nnx.Module):
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` when gated.

    Args:
      width: d, of input and output.
      mlp_dim: f, of the hidden layer.
      activation: a name of `ACTIVATIONS`.
      gated: GLU variant (arXiv 2002.05202); 'gelu' gives GEGLU, 'silu' SwiGLU.
      use_bias: of every projection.
      kernel: what computes them, see `products.matmul` and `relu`.
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
        self.activation, self.kernel = activation, kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] to [..., d]."""
        act = ACTIVATIONS[self.activation]
        if act is relu:
            act = functools.partial(relu, kernel=self.kernel)
        hidden = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(hidden)
