"""Masks of weights, by parameter path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.errors import UsageError, nearest

Masks = dict[str, jax.Array]
"""`{path: bool array of the parameter's shape}`, true where a weight is kept; all weights of a
parameter without a mask are kept."""


def apply_masks(params: Mapping[str, Any], masks: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters with masked weights set to zero; those without a mask are unchanged.

    Averages of parameters over changing masks are dense; this makes them sparse again.

    Args:
      params: `{path: array}`.
      masks: `{path: bool array}`, each with the shape of its parameter.

    Raises:
      UsageError: a mask without a parameter, or with another shape or dtype.

    >>> apply_masks({'w': jnp.ones(3), 'b': jnp.ones(1)}, {'w': jnp.array([1, 0, 1], bool)})['w']
    Array([1., 0., 1.], dtype=float32)
    """
    require_fitting_masks(params, masks)
    masked = {path: jnp.where(mask, params[path], 0) for path, mask in masks.items()}
    return {path: masked.get(path, p) for path, p in params.items()}


def require_fitting_masks(params: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
    """Checks that each mask is a bool array with the shape of its parameter.

    Raises:
      UsageError: it is not.
    """
    for path, mask in masks.items():
        if path not in params:
            raise UsageError(
                f"the mask {path!r} fits no parameter{nearest(path, params)}; masks have the paths "
                "of their parameters"
            )
        if mask.dtype != bool or mask.shape != params[path].shape:
            raise UsageError(
                f"the mask of {path!r} is {mask.dtype}{list(mask.shape)}; it takes "
                f"bool{list(params[path].shape)}, the shape of the parameter"
            )
