"""A tiny model, objective and stream that the tests of training share."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab import train
from jaxlab.core import Loss, MeshConfig, UsageError, make_mesh, masked_mean


class Net(nnx.Module):
    """Two layers with logical axes."""

    def __init__(self, rngs: nnx.Rngs, width: int = 8):
        self.up = nnx.Linear(4, width, rngs=rngs, kernel_metadata={"axes": ("embed", "mlp")})
        self.down = nnx.Linear(width, 2, rngs=rngs, kernel_metadata={"axes": ("mlp", None)})

    def __call__(self, x_bd: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(x_bd)))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Net:
        return cls(nnx.Rngs(0), **config)


def build(rngs: nnx.Rngs) -> Net:
    return Net(rngs)


def objective(model, batch, carry, key) -> Loss:
    """Squared error beside the carry, which sums the inputs of each row; the key adds noise."""
    shift = 0.0 if carry is None else 0.1 * carry
    noise = 0.01 * jax.random.normal(key, batch["y"].shape)
    error = jnp.square(model(batch["x"]) + shift - batch["y"] + noise).sum(-1)
    value, weight = masked_mean(error, batch["mask"])
    carry = None if carry is None else 0.5 * carry + batch["x"][:, :2]
    return Loss(value, weight, {"input": masked_mean(batch["x"][:, 0], batch["mask"])}, carry)


def quiet_objective(model, batch, carry, key) -> Loss:
    """The same without noise, so that the split into micro-batches does not show."""
    error = jnp.square(model(batch["x"]) - batch["y"]).sum(-1)
    value, weight = masked_mean(error, batch["mask"])
    carry = None if carry is None else carry + batch["x"][:, :2]
    return Loss(value, weight, {"input": masked_mean(batch["x"][:, 0], batch["mask"])}, carry)


class Numbers:
    """An endless stream whose batch depends on its number alone."""

    def __init__(self, rows: int = 8, scale: float = 1.0):
        self.number, self.rows, self.scale = 0, rows, scale

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.number)
        self.number += 1
        x = rng.normal(size=(self.rows, 4)).astype(np.float32)
        mask = rng.random(self.rows) > 0.4
        return {"x": x * self.scale, "y": np.cumsum(x, axis=1)[:, 1:3], "mask": mask}

    def state(self) -> dict[str, int]:
        return {"number": self.number, "rows": self.rows}

    def restore(self, state: dict[str, int]) -> None:
        if state["rows"] != self.rows:
            raise UsageError(f"rows={state['rows']} (now {self.rows})")
        self.number = state["number"]


class Rows:
    """A writer that keeps what is written."""

    def __init__(self):
        self.rows: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append((step, dict(metrics)))


def make_state(mesh, optimizer, **kwargs):
    names = ("grad_norm", "input", "loss")
    kwargs = {"key": 0, "metric_names": names} | kwargs
    return train.init_state(build, optimizer, mesh=mesh, **kwargs)


def carry(rows: int = 8):
    return lambda: jnp.zeros((rows, 2))


@pytest.fixture(scope="session")
def toy() -> types.SimpleNamespace:
    names = (Net, build, objective, quiet_objective, Numbers, Rows, make_state, carry)
    return types.SimpleNamespace(**{thing.__name__: thing for thing in names})


@pytest.fixture(scope="session")
def one():
    """A mesh of one device."""
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="session")
def eight():
    """A mesh of eight devices: data, fsdp and tensor of two each."""
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
