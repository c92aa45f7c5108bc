"""Sparse training: an optax wrapper that stores the masks and keeps masked weights at zero."""

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
      step: int32 scalar, number of updates done.
      masks: `{path: bool array}`, true where a weight is kept.
      inner: the state of the inner optimizer.
    """

    step: jax.Array
    masks: Masks
    inner: Any


def sparsify(
    inner: optax.GradientTransformation,
    masks: Mapping[str, jax.Array] | Callable[[Params], Masks],
    change: MaskChange | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains only the kept weights; use it as the outermost wrapper.

    Both the gradients and the updates of the inner optimizer are masked, so neither momentum nor
    weight decay revives a weight: masked weights are exactly zero after every update, even if they
    were not before. Start from `core.apply_masks(params, masks)`, since the first gradients are
    taken at the parameters as given. The state stores the masks by parameter path, so they are
    sharded, saved and restored like parameters.

    Masks change inside a loop of zero or one iterations, so steps without a change rank and draw
    nothing; such an update has only forward-mode derivatives. A step with a change updates the
    weights that stay. Dropped weights become zero and grown ones start at zero, and so do their
    entries in the state of the inner optimizer, in all arrays below a parameter's path that have
    its shape.

    Args:
      inner: an optax optimizer over the flat parameters.
      masks: `{path: bool array}`, or a function of the parameters that returns them, called when
        the state is initialised. Parameters without a mask are trained normally, and so are those
        with a constant mask that keeps everything.
      change: how the masks change; see `Gradual` and `Regrow`. None: they do not.

    Raises:
      UsageError: at initialisation, a mask without a parameter; at an update, no parameters given.

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
            raise UsageError("a sparse optimizer needs the parameters to update; pass params")
        after, stays, within = state.masks, state.masks, state.inner
        if change is not None and after:
            after, stays, within = _changed(change, state, params, grads)
        updates, within = inner.update(apply_masks(grads, stays), within, params, **extra)
        # p + (-p) is zero for dropped weights; grown ones are zero already.
        masked = {p: jnp.where(mask, updates[p], -params[p]) for p, mask in stays.items()}
        updates = {path: masked.get(path, u) for path, u in updates.items()}
        return updates, SparseState(state.step + 1, after, within)

    return optax.GradientTransformationExtraArgs(init, update)


def masks_of(opt_state: Any) -> Masks:
    """Returns the masks in the state of an optimizer made by `sparsify`; none for other optimizers.

    >>> masks_of(optax.sgd(0.1).init({'w': jnp.ones(2)}))
    {}
    """
    return dict(opt_state.masks) if isinstance(opt_state, SparseState) else {}


def _keeps_all(mask: Any) -> bool:
    # A select would prevent fusing the update's product and sum, which changes the last bit;
    # without it, training at density 1 equals unmasked training bit for bit.
    if isinstance(mask, jax.Array) and not mask.is_fully_addressable:
        return False
    return bool(np.asarray(mask).all())


def _changed(
    change: MaskChange, state: SparseState, params: Params, grads: Params
) -> tuple[Masks, Masks, Any]:
    """Returns the masks after a step, those of weights that stay, and the inner optimizer state."""

    def body(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        _, masks, _, within = loop
        after = change.change(state.step, params, grads, masks)
        stays = {path: mask & after[path] for path, mask in masks.items()}
        return jnp.zeros((), bool), after, stays, _forget(within, stays)

    # Not a conditional, for which the compiler copies all arrays in every step; a loop changes them
    # in place. Only the masks are copied, since they are passed twice.
    first = (jnp.asarray(change.due(state.step)), state.masks, state.masks, state.inner)
    _, *changed = jax.lax.while_loop(lambda loop: loop[0], body, first)
    return tuple(changed)


def _forget(inner: Any, masks: Masks) -> Any:
    """Sets the optimizer state of masked weights to zero."""

    def forget(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        path = next((name for name in reversed(names) if name in masks), None)
        if path is None or leaf.shape != masks[path].shape:
            return leaf
        return jnp.where(masks[path], leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(forget, inner)
