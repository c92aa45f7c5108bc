"""Initial weights of sparse kernels, scaled for the few inputs of each output."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlab.core import Masks, Params, UsageError, apply_masks, named
from jaxlab.sparsity.kernels import num_inputs

Distribution = Literal["normal", "uniform"]
"""Of first weights."""


def rescale(params: Params, masks: Masks) -> Params:
    """Masks parameters and divides kept weights by the square root of their kernel's density.

    Outputs with fewer inputs then have the variance that the model's own initialisation gives them.
    If all weights are kept, the result is the same bit for bit.

    >>> params = {'kernel': jnp.array([[1., 1.], [1., 1.]])}
    >>> masks = {'kernel': jnp.array([[True, False], [False, False]])}
    >>> rescale(params, masks)['kernel'].tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    masked = apply_masks(params, masks)
    scaled = {
        path: masked[path] / jnp.sqrt(_density(mask)).astype(masked[path].dtype)
        for path, mask in masks.items()
    }
    return {path: scaled.get(path, p) for path, p in masked.items()}


def sparse_init(
    key: jax.Array,
    params: Params,
    masks: Masks,
    distribution: Distribution = "normal",
) -> Params:
    """Draws new kept weights for masked kernels; the other parameters are unchanged.

    With d the density of the kernel and fan_in its number of weights per output, including the
    window of a convolution: `normal` has the standard deviation `sqrt(2 / (fan_in d))`, He
    initialisation for the remaining inputs; `uniform` is within `1 / sqrt(fan_in d)`, as in
    arXiv 2010.14495.

    Args:
      key: a typed key; a kernel's weights depend only on it and on the kernel's path and mask.
      params: `{path: array}`.
      masks: `{path: bool array}`.
      distribution: see above.

    Raises:
      UsageError: a mask without a parameter; an unknown distribution.
    """
    if distribution not in ("normal", "uniform"):
        raise UsageError(f"distribution={distribution!r}; it takes 'normal' or 'uniform'")
    draw = jax.random.normal if distribution == "normal" else _symmetric
    gain = math.sqrt(2) if distribution == "normal" else 1.0
    drawn = {}
    for path, mask in masks.items():
        inputs = num_inputs(path, mask.shape) * _density(mask)
        weights = draw(named(key, "weights", path), mask.shape) * gain / jnp.sqrt(inputs)
        drawn[path] = weights.astype(params[path].dtype)
    return apply_masks({path: drawn.get(path, p) for path, p in params.items()}, masks)


def _density(mask: jax.Array) -> jax.Array:
    # Float32 is precise enough for these counts; max avoids a division by zero for an empty mask.
    return jnp.maximum(mask.sum(), 1) / mask.size


def _symmetric(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
