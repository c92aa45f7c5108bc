"""Methods that choose the weights to keep, before or after training.

The argument `kept` is `{path: number of weights}`, as `densities` returns it, or a density for all
kernels. All methods keep exactly this number, break ties by the lower flat index, and work on
sharded parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlab.core import Batch, Masks, Objective, Params, UsageError, View, apply_masks, named
from jaxlab.sparsity.densities import densities, require_counts
from jaxlab.sparsity.kernels import kernel_shape, prunable
from jaxlab.sparsity.selection import keep_largest, mark_largest

CountsOrDensity = Mapping[str, int] | float
"""`{path: number of weights kept}`, or a density of every kernel."""


def random(key: jax.Array, params: Mapping[str, Any], kept: CountsOrDensity) -> Masks:
    """Keeps a uniformly random subset of each kernel's weights.

    Args:
      key: a typed key; a kernel's mask depends only on it and on the kernel's path and shape.
      params: `{path: array or shape}`.
      kept: see the module.

    Raises:
      UsageError: a count without a parameter, or out of range.

    >>> mask = random(jax.random.key(0), {'kernel': jnp.ones((4, 5))}, {'kernel': 7})['kernel']
    >>> mask.shape, int(mask.sum())
    ((4, 5), 7)
    """
    counts = _counts(params, kept)
    bits = {p: jax.random.bits(named(key, "mask", p), params[p].shape) >> 1 for p in counts}
    return _largest_of_each(bits, counts)


def magnitude(
    params: Params, kept: CountsOrDensity, scope: Literal["local", "global"] = "local"
) -> Masks:
    """Keeps the weights with the largest magnitude.

    Args:
      params: `{path: array}`.
      kept: see the module.
      scope: `local` keeps the given number in each kernel. `global` keeps their sum over all
        kernels, ranked by `|w|` divided by the kernel's L2 norm, with at least one weight per
        kernel.

    Raises:
      UsageError: as `random`; an unknown scope.

    >>> magnitude({'kernel': jnp.array([[1., -3.], [2., 0.5]])}, 0.5)['kernel'].tolist()
    [[False, True], [True, False]]
    """
    if scope not in ("local", "global"):
        raise UsageError(f"scope={scope!r}; it takes 'local' or 'global'")
    counts = _counts(params, kept)
    scores = {path: jnp.abs(params[path].astype(jnp.float32)) for path in counts}
    if scope == "local":
        return _largest_of_each(scores, counts)
    tiny = jnp.finfo(jnp.float32).tiny
    norms = {path: jnp.sqrt(jnp.square(s).sum()) for path, s in scores.items()}
    scores = {path: s / jnp.maximum(norms[path], tiny) for path, s in scores.items()}
    return _largest_of_all(scores, sum(counts.values()))


def n_m(
    params: Params, n: int, m: int, axis: int = -2, patterns: Sequence[str] | None = None
) -> Masks:
    """Keeps the n largest in magnitude of every m consecutive weights along one axis.

    Args:
      params: `{path: array}`.
      n: from 1 to m.
      m: must divide the axis of every kernel.
      axis: an axis of the kernel as `(*window, fan_in, fan_out)`; by default the inputs.
      patterns: patterns of the parameters to prune; see `prunable`.

    Raises:
      UsageError: n out of range; a kernel that m does not divide; a pattern that matches nothing.

    >>> mask = n_m({'kernel': jnp.array([[4.], [-3.], [2.], [1.]])}, 2, 4)['kernel']
    >>> mask.ravel().tolist()
    [True, True, False, False]
    """
    if not 1 <= n <= m:
        raise UsageError(f"n={n} of m={m}; n is from 1 to m")
    masks = {}
    for path in prunable(params, patterns):
        kernel = params[path].reshape(kernel_shape(path, params[path].shape))
        if not -kernel.ndim <= axis < kernel.ndim:
            raise UsageError(f"axis={axis}; {path!r} has {kernel.ndim} axes as {kernel.shape}")
        if kernel.shape[axis] % m:
            raise UsageError(
                f"{path!r} has {kernel.shape[axis]} weights along axis {axis}, which m={m} does "
                "not divide; exclude it with patterns=, or use another m or axis"
            )
        masks[path] = _n_of_m(kernel, n, m, axis % kernel.ndim).reshape(params[path].shape)
    return masks


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _n_of_m(kernel: jax.Array, n: int, m: int, axis: int) -> jax.Array:
    before, after = kernel.shape[:axis], kernel.shape[axis + 1 :]
    size = jnp.abs(kernel).reshape(*before, kernel.shape[axis] // m, m, *after)
    # The rank of each weight in its group, by comparing all pairs: groups are small.
    own, other = jnp.expand_dims(size, axis + 2), jnp.expand_dims(size, axis + 1)
    earlier = jnp.tri(m, k=-1, dtype=bool).reshape(*(1,) * (axis + 1), m, m, *(1,) * len(after))
    rank = ((other > own) | ((other == own) & earlier)).sum(axis + 2)
    return (rank < n).reshape(kernel.shape)


def snip(
    view: View,
    objective: Objective,
    batch: Batch,
    kept: CountsOrDensity,
    *,
    key: jax.Array | None = None,
) -> Masks:
    """Keeps the weights whose removal would change the loss most: `|w dL/dw|` (arXiv 1810.02340).

    It keeps the sum of the numbers over all kernels together, with at least one weight per kernel.

    Args:
      view: the model with its initial parameters; it is called in training mode.
      objective: `objective(model, batch, carry, key) -> Loss`.
      batch: the batch of the loss.
      kept: see the module.
      key: the key of the objective, for models or losses with noise.

    Raises:
      UsageError: as `random`; scores that are not finite.
    """
    counts = _counts(view.params, kept)
    view, key = view.training(), jax.random.key(0) if key is None else key

    @jax.jit
    def scored(params: Params, state: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        def loss(params: Params) -> jax.Array:
            def model(*args: Any, **kwargs: Any) -> Any:
                return view.apply_with_state(params, state, *args, **kwargs)[0]

            return objective(model, batch, None, key).value

        return _sensitivity(params, jax.grad(loss)(params), counts)

    scores = scored(view.params, view.state, dict(batch))
    _require_finite(scores, "the gradients of the loss; use another batch or smaller weights")
    return _largest_of_all(scores, sum(counts.values()))


def synflow(view: View, example: Any, kept: CountsOrDensity, *, rounds: int = 100) -> Masks:
    """Iteratively prunes the weights with the least synaptic flow (arXiv 2006.05467).

    With `R = sum f(1; |theta|)`, which needs no data, the score of a weight is `|w dR/dw|`. After
    round i, `K D^(i/rounds)` of the K weights are left. The model is in evaluation mode with the
    magnitudes of its running statistics, so that the flow is positive. R is a product over all
    layers, which exceeds float32 in deep models: it is computed in float64, in all layers that use
    the dtype of their inputs.

    Args:
      view: the model with its initial parameters.
      example: inputs [b, ...], an array or shape; only its shape is used, with one row of ones.
      kept: see the module; the sum of the numbers is kept over all kernels together, with at least
        one weight per kernel.
      rounds: number of rounds.

    Raises:
      UsageError: as `random`; fewer than one round; an R that is not finite.
    """
    if rounds < 1:
        raise UsageError(f"rounds={rounds}; it takes 1 or more")
    counts = _counts(view.params, kept)
    size = sum(math.prod(view.params[path].shape) for path in counts)
    total, view = sum(counts.values()), view.evaluating()
    left = [max(total, round(size * (total / size) ** (i / rounds))) for i in range(1, rounds + 1)]

    with jax.enable_x64(True):
        ones = jnp.ones((1, *example.shape[1:]), jnp.float64)
        state = jax.tree.map(_wide_magnitude, view.state)
        params = jax.jit(lambda params: jax.tree.map(_wide_magnitude, params))(view.params)

        @jax.jit
        def prune(
            params: Params, state: dict[str, Any], masks: Masks, count: jax.Array
        ) -> tuple[Masks, jax.Array]:
            def flow(params: Params) -> jax.Array:
                output, _ = view.apply_with_state(params, state, ones)
                return jax.tree.leaves(output)[0].sum(dtype=jnp.float64)

            params = apply_masks(params, masks)
            flowing, grads = jax.value_and_grad(flow)(params)
            return _largest_of_all(_sensitivity(params, grads, counts), count, masks), flowing

        masks = {path: jnp.ones_like(params[path], bool) for path in counts}
        for number in left:
            masks, flowing = prune(params, state, masks, number)
            if not math.isfinite(flowing):
                raise UsageError(
                    f"the synaptic flow is {flowing}: the dtype of the model is too narrow for the "
                    "product of its layers; build it without a dtype, so that it uses float64"
                )
    return masks


def nonzero(params: Params, patterns: Sequence[str] | None = None) -> Masks:
    """Returns the masks of the nonzero weights of all kernels.

    Args:
      params: `{path: array}`, for example of a checkpoint.
      patterns: patterns of the pruned parameters; see `prunable`.
    """
    return {path: params[path] != 0 for path in prunable(params, patterns)}


def _counts(params: Mapping[str, Any], kept: CountsOrDensity) -> dict[str, int]:
    if not isinstance(kept, Mapping):
        return densities(params, kept, "uniform", allow_empty_units=True)
    require_counts(params, kept)
    return {path: int(count) for path, count in kept.items()}


def _sensitivity(params: Params, grads: Params, paths: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {path: jnp.abs(params[path] * grads[path]) for path in paths}


def _wide_magnitude(x: jax.Array) -> jax.Array:
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.abs(x).astype(jnp.float64) if is_float else x


def _largest_of_each(scores: Mapping[str, jax.Array], counts: Mapping[str, int]) -> Masks:
    return {path: keep_largest({path: s}, counts[path])[path] for path, s in scores.items()}


def _largest_of_all(
    scores: Mapping[str, jax.Array], count: int | jax.Array, among: Masks | None = None
) -> Masks:
    """Keeps the largest over all kernels, but at least one per kernel."""
    if among is not None:
        scores = {path: jnp.where(among[path], s, -1) for path, s in scores.items()}
    scores = {path: jnp.where(mark_largest(s), jnp.inf, s) for path, s in scores.items()}
    return keep_largest(scores, count, among)


def _require_finite(scores: Mapping[str, jax.Array], what: str) -> None:
    for path, score in scores.items():
        if not bool(jnp.isfinite(score).all()):
            raise UsageError(f"the scores of {path!r} are not finite: they come from {what}")
