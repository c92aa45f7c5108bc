"""Sparse training: an optax wrapper that holds the masks, and keeps masked weights at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.core import Masks, Params, UsageError, apply_masks, require_fitting_masks
from jaxlab.sparsity.pruning import MaskChange


class SparseState(NamedTuple):
    """The state of an optimizer made by `sparsify`.

    Attributes:
      step: int32 scalar, updates done.
      masks: `{path: bool array}`, true where a weight is kept.
      inner: the state of the optimizer within.
    """

    step: jax.Array
    masks: Masks
    inner: Any


def sparsify(
    inner: optax.GradientTransformation,
    masks: Mapping[str, jax.Array] | Callable[[Params], Masks],
    change: MaskChange | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer that trains the kept weights alone; it is the outermost wrapper.

    Gradients are masked before the optimizer within sees them, and its updates behind it, so that
    neither momentum nor weight decay revives a weight: a masked weight is exactly zero after every
    update, even if it was not before. The state holds the masks by the paths of their parameters,
    and so they are sharded, saved and restored like these.

    Masks that change do so within a loop of one round or none: steps without a change rank and
    draw nothing, and such an update has derivatives in forward mode alone. A step with one updates
    the weights that stay; those dropped go to zero, those that grow begin at zero, and what the
    optimizer within remembers of either is zero, in all arrays of its state that lie below a
    parameter's path and have its shape.

    Args:
      inner: an optax optimizer over the flat parameters.
      masks: `{path: bool array}`, or what gives them for the parameters, when the state is made.
        Parameters without a mask are trained as they are, and so are those whose given mask keeps
        all and stays.
      change: how they change; see `Gradual` and `Regrow`. None: they stay.

    Raises:
      UsageError: when it is initialised, a mask that fits no parameter; when it updates, no
        parameters.

    >>> optimizer = sparsify(optax.sgd(0.5, momentum=0.9), {'w': jnp.array([True, False])})
    >>> params = {'w': jnp.array([1., 0.])}
    >>> updates, state = optimizer.update({'w': jnp.ones(2)}, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)['w'].tolist()
    [0.5, 0.0]
    """
    inner = optax.with_extra_args_support(inner)
    if not callable(masks) and change is None:
        masks = {path: mask for path, mask in masks.items() if not _keeps_all(mask)}

    def init(params: Params) -> SparseState:
        first = dict(masks(params) if callable(masks) else masks)
        require_fitting_masks(params, first)
        return SparseState(jnp.zeros((), jnp.int32), first, inner.init(apply_masks(params, first)))

    def update(
        grads: Params, state: SparseState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise UsageError("a sparse optimizer updates by the parameters too; pass params")
        after, stays, within = state.masks, state.masks, state.inner
        if change is not None and after:
            after, stays, within = _changed(change, state, params, grads)
        updates, within = inner.update(apply_masks(grads, stays), within, params, **extra)
        # p + (-p) is zero for whatever was there; what grows is zero already.
        kept = {p: jnp.where(mask, updates[p], -params[p]) for p, mask in stays.items()}
        updates = {path: kept.get(path, u) for path, u in updates.items()}
        return updates, SparseState(state.step + 1, after, within)

    return optax.GradientTransformationExtraArgs(init, update)


def masks_of(opt_state: Any) -> Masks:
    """The masks in the state of an optimizer made by `sparsify`; of other optimizers none.

    >>> masks_of(optax.sgd(0.1).init({'w': jnp.ones(2)}))
    {}
    """
    return dict(opt_state.masks) if isinstance(opt_state, SparseState) else {}


def _keeps_all(mask: Any) -> bool:
    # A select would keep the compiler from fusing the update's product into its sum, and so change
    # the last bit: without one, density 1 is the unmasked training to the bit.
    if isinstance(mask, jax.Array) and not mask.is_fully_addressable:
        return False
    return bool(np.asarray(mask).all())


def _changed(
    change: MaskChange, state: SparseState, params: Params, grads: Params
) -> tuple[Masks, Masks, Any]:
    """The masks behind a step, what stays in it, and what the optimizer remembers of that."""

    def body(kept: tuple[Any, ...]) -> tuple[Any, ...]:
        _, masks, _, within = kept
        after = change.change(state.step, params, grads, masks)
        stays = {path: mask & after[path] for path, mask in masks.items()}
        return jnp.zeros((), bool), after, stays, _forget(within, stays)

    # Not a conditional, through which the compiler copies arrays in every step: those of a loop are
    # changed in place. Only the masks are copied, for they are there twice.
    first = (jnp.asarray(change.due(state.step)), state.masks, state.masks, state.inner)
    _, *changed = jax.lax.while_loop(lambda kept: kept[0], body, first)
    return tuple(changed)


def _forget(inner: Any, masks: Masks) -> Any:
    """Sets what an optimizer remembers of masked weights to zero."""

    def forget(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        path = next((name for name in reversed(names) if name in masks), None)
        if path is None or leaf.shape != masks[path].shape:
            return leaf
        return jnp.where(masks[path], leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(forget, inner)
