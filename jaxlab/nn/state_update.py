"""How a recurrent state takes in what its heads have read: gates and configurations.

A gate maps (state C, candidate z, features f) to the next state; f is the input of the linear map
that gave z. A configuration makes z and f from the heads H. All are those of arXiv 2203.07852,
section 3, with the constants of the authors' code. `backend` computes their products.

Letters: b rows, r state vectors, d width, h heads (those of the state and of the tokens), k width
of a head, f width of the hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.nn.backend import PLAIN, Backend
from jaxlab.nn.broadcast import lift
from jaxlab.nn.initialisers import projection
from jaxlab.nn.norm import RMSNorm

FEATURES = {1: ("mlp",), 2: ("heads", None)}  # logical axes of features by their rank


class MakeGate(Protocol):
    """How an update gets its gates: `FixedGate`, `LSTMGate`, `GRUGate` or a partial of one."""

    def __call__(
        self, width: int, features: Sequence[int], *, backend: Backend, dtype: Any, rngs: nnx.Rngs
    ) -> Gate:
        """A gate for states of `width` and features of these last dimensions."""


class Gate(nnx.Module):
    """`c' = c * kept + z * taken`; each kind of gate says how much is kept and taken."""

    def values(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is kept of the state and taken of the candidate, float32 [d] or [b, r, d]."""
        raise NotImplementedError

    def __call__(self, c_brd: jax.Array, z_brd: jax.Array, features: jax.Array) -> jax.Array:
        """State and candidate [b, r, d] and the candidate's features to the next state."""
        kept, taken = (lift(x.astype(c_brd.dtype), c_brd.ndim) for x in self.values(features))
        return c_brd * kept + z_brd * taken


class FixedGate(Gate):
    """`c' = c * g + z * (1 - g)` with `g = sigmoid(bias_d)`, one learned vector for all inputs.

    The bias starts as N(`bias`, 0.1): with 0, each block keeps about half of the state.
    """

    def __init__(
        self,
        width: int,
        features: Sequence[int] = (),
        *,
        bias: float = 0.0,
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del features, backend, dtype
        self.bias = gate_bias(width, bias, rngs)

    def values(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The pair (g, 1 - g), [d]."""
        del features
        kept = jax.nn.sigmoid(self.bias[...])
        return kept, 1 - kept


class GRUGate(Gate):
    """`c' = c * g + z * (1 - g)` with `g = sigmoid(W f + b + 1)`: the gate of a GRU.

    W starts with variance 0.1 / fan-in, b as N(`bias`, 0.1). The authors' code calls it `full`.
    """

    def __init__(
        self,
        width: int,
        features: Sequence[int],
        *,
        bias: float = 0.0,
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.linear = gate_projection(width, features, backend, dtype, rngs)
        self.bias = gate_bias(width, bias, rngs)

    def values(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The pair (g, 1 - g), [b, r, d]."""
        kept = sigmoid(self.linear(features), self.bias[...] + 1)
        return kept, 1 - kept


class LSTMGate(Gate):
    """`c' = c * F + z * I`, `F = sigmoid(W_f f + b_f + 1)`, `I = sigmoid(W_i f + b_i - 1)`.

    W_f and W_i start with variance 0.1 / fan-in, b_i as N(0, 0.1), b_f as N(`bias`, 0.1).
    """

    def __init__(
        self,
        width: int,
        features: Sequence[int],
        *,
        bias: float = 0.0,
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.forget = gate_projection(width, features, backend, dtype, rngs)
        self.forget_bias = gate_bias(width, bias, rngs)
        self.take = gate_projection(width, features, backend, dtype, rngs)
        self.take_bias = gate_bias(width, 0.0, rngs)

    def values(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The pair (F, I), [b, r, d]."""
        return (
            sigmoid(self.forget(features), self.forget_bias[...] + 1),
            sigmoid(self.take(features), self.take_bias[...] - 1),
        )


class SkipUpdate(nnx.Module):
    """The 'skip' configuration: `z = H W_p`, `c' = gate(c, z)` with f = H; no MLP."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        gate: MakeGate = FixedGate,
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        how = {"backend": backend, "dtype": dtype, "rngs": rngs}
        heads = (num_heads, head_dim)
        self.output = projection(heads, width, ("heads", None, "embed"), **how)
        self.gate = gate(width, heads, **how)

    def __call__(self, c_brd: jax.Array, heads_brhk: jax.Array) -> jax.Array:
        """State [b, r, d] and what its heads read [b, r, h, k], to the next state."""
        return self.gate(c_brd, self.output(heads_brhk), heads_brhk)

    def gate_values(self, c_brd: jax.Array, heads_brhk: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the gate keeps and takes for these heads; see `Gate.values`."""
        del c_brd
        return self.gate.values(heads_brhk)


class SingleUpdate(nnx.Module):
    """The 'single' configuration: `f = relu(H A1)`, `z = tanh(f A2)`, `c' = gate(c, z)`."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        *,
        gate: MakeGate = FixedGate,
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        how = {"backend": backend, "dtype": dtype, "rngs": rngs}
        heads = (num_heads, head_dim)
        self.up = projection(heads, mlp_dim, ("heads", None, "mlp"), **how)
        self.down = projection(mlp_dim, width, ("mlp", "embed"), **how)
        self.gate = gate(width, (mlp_dim,), **how)
        self.backend = backend

    def __call__(self, c_brd: jax.Array, heads_brhk: jax.Array) -> jax.Array:
        """State [b, r, d] and what its heads read [b, r, h, k], to the next state."""
        hidden_brf = self.backend.relu(self.up(heads_brhk))
        return self.gate(c_brd, jnp.tanh(self.down(hidden_brf)), hidden_brf)

    def gate_values(self, c_brd: jax.Array, heads_brhk: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the gate keeps and takes for these heads; see `Gate.values`."""
        del c_brd
        return self.gate.values(self.backend.relu(self.up(heads_brhk)))


class DualUpdate(nnx.Module):
    """The 'dual' configuration: a gate after the attention, and one after an MLP.

    `c1 = gate1(c, H W_p)` with f = H; `c' = gate2(c1, y A2)` with `f = y = relu(rms(c1) A1)`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        *,
        gate: MakeGate = FixedGate,
        backend: Backend = PLAIN,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        how = {"backend": backend, "dtype": dtype, "rngs": rngs}
        self.attention = SkipUpdate(width, num_heads, head_dim, gate=gate, **how)
        self.norm = RMSNorm(width, dtype=dtype, rngs=rngs)
        self.up = projection(width, mlp_dim, ("embed", "mlp"), **how)
        self.down = projection(mlp_dim, width, ("mlp", "embed"), **how)
        self.gate = gate(width, (mlp_dim,), **how)
        self.backend = backend

    def __call__(self, c_brd: jax.Array, heads_brhk: jax.Array) -> jax.Array:
        """State [b, r, d] and what its heads read [b, r, h, k], to the next state."""
        c_brd = self.attention(c_brd, heads_brhk)
        hidden_brf = self.backend.relu(self.up(self.norm(c_brd)))
        return self.gate(c_brd, self.down(hidden_brf), hidden_brf)

    def gate_values(self, c_brd: jax.Array, heads_brhk: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the second gate keeps and takes for these heads; see `Gate.values`."""
        c_brd = self.attention(c_brd, heads_brhk)
        return self.gate.values(self.backend.relu(self.up(self.norm(c_brd))))


GATES: dict[str, Callable[..., Gate]] = {
    "fixed": FixedGate,
    "lstm": LSTMGate,
    "gru": GRUGate,
}
"""Gates by name."""

UPDATES: dict[str, Callable[..., nnx.Module]] = {
    "skip": SkipUpdate,
    "single": SingleUpdate,
    "dual": DualUpdate,
}
"""Configurations by name; all but skip take the width of their MLP."""


def gate_bias(width: int, mean: float, rngs: nnx.Rngs) -> nnx.Param:
    """A bias [d] that starts as N(mean, 0.1)."""
    return nnx.Param(mean + 0.1 * jax.random.normal(rngs.params(), (width,)), axes=("embed",))


def gate_projection(
    width: int, features: Sequence[int], backend: Backend, dtype: Any, rngs: nnx.Rngs
) -> nnx.LinearGeneral:
    """The linear map of a gate, from features to [d], that starts with variance 0.1 / fan-in."""
    axes = (*FEATURES[len(features)], "embed")
    return projection(features, width, axes, scale=0.1, backend=backend, dtype=dtype, rngs=rngs)


def sigmoid(x: jax.Array, bias_d: jax.Array) -> jax.Array:
    """`sigmoid(x + bias)`, in float32."""
    return jax.nn.sigmoid(x.astype(jnp.float32) + lift(bias_d, x.ndim))
