"""Every model by name, as a tiny instance that tests build and call.

Each model file registers its class in one line, once for each way of using it:

    register("mlp", MLP, MLPConfig(in_dim=8, widths=(16,)), features(8))

The tests of `models/` run all registered models on many meshes, and fail for a class that is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from jaxlab.core import UsageError, nearest

Inputs = Callable[[int], tuple[Any, ...]]
"""Maps a number of rows to the arguments of a call, [b, ...] each, always the same."""


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One registered model.

    Attributes:
      name: of the entry; a class registered more than once has a variant after a '/'.
      model: the class; called with `inputs` it returns its prediction, alone or first in a tuple.
      config: of a tiny instance whose sizes divide over eight devices.
      inputs: the arguments of its call.
    """

    name: str
    model: Callable[..., nnx.Module]
    config: Any
    inputs: Inputs

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Makes the tiny instance."""
        return self.model(self.config, rngs=rngs)


_entries: dict[str, ModelEntry] = {}


def register(name: str, model: type[nnx.Module], config: Any, inputs: Inputs) -> ModelEntry:
    """Adds a model to the registry; the arguments are the attributes of `ModelEntry`.

    Raises:
      UsageError: a name that is already registered.
    """
    if name in _entries:
        taken = _entries[name].model.__name__
        raise UsageError(f"model {name!r} is registered already, for {taken}; choose another name")
    _entries[name] = ModelEntry(name, model, config, inputs)
    return _entries[name]


def registered(name: str) -> ModelEntry:
    """The entry of a name.

    Raises:
      UsageError: a name that no model has.

    >>> registered("transformer_lm/plain").model.__name__
    'TransformerLM'
    """
    if name not in _entries:
        raise UsageError(f"no model {name!r}{nearest(name, _entries)}; there are {names()}")
    return _entries[name]


def names() -> tuple[str, ...]:
    """The names of all registered models, sorted."""
    return tuple(sorted(_entries))


def tokens(length: int, vocab_size: int) -> Inputs:
    """Inputs of one array of token ids, int32 [b, length]."""

    def inputs(rows: int) -> tuple[np.ndarray]:
        rng = np.random.default_rng(0)
        return (rng.integers(0, vocab_size, (rows, length), dtype=np.int32),)

    return inputs


def features(*shape: int) -> Inputs:
    """Inputs of one array of standard normal numbers, float32 [b, *shape]."""

    def inputs(rows: int) -> tuple[np.ndarray]:
        return (np.random.default_rng(0).normal(size=(rows, *shape)).astype(np.float32),)

    return inputs
