"""Perturbed weights: random ones, and the worst ones in a ball around the weights of each layer.

Only the kept entries of kernels are perturbed. Entries that are 0 stay 0, so that a sparse model is
tested on the weights that it has.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.analysis import Interval, mean_over_seeds
from jaxlab.core import (
    Params,
    Rules,
    UsageError,
    View,
    apply_masks,
    as_view,
    batch_sharding,
    named,
    natural_sort,
    nearest,
    place_rows,
    require_labels,
)
from jaxlab.evals.images import Examples, error_log_odds, logits_of, num_classes
from jaxlab.evals.placed import Placed
from jaxlab.evals.prediction import predict

RANDOM_KINDS = ("gaussian", "rms", "relative")
"""The kinds that `perturb_weights` takes; `weight_noise_curve` also takes `worst_case`."""


@dataclasses.dataclass(frozen=True, eq=False)
class WeightNoiseCurve:
    """Accuracy with perturbed weights.

    Attributes:
      kind: one of `RANDOM_KINDS`, or `worst_case`.
      sizes: sizes of the perturbation, [s].
      accuracies: float64 [s, draws], in [0, 1].
    """

    kind: str
    sizes: tuple[float, ...]
    accuracies: np.ndarray

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """For each size the mean over draws, and its 95% interval by Student's t, in [0, 1].

        The interval is over draws for this model and these images, not over training seeds.
        """
        intervals = map(mean_over_seeds, self.accuracies)
        return tuple(Interval(m, max(0.0, low), min(1.0, high)) for m, low, high in intervals)


def kept_kernels(params: Params, masks: Mapping[str, Any] | None = None) -> dict[str, jax.Array]:
    """The entries of the kernels that are perturbed: bool, `{path: array}`.

    Kernels are parameters of rank 2 or more whose path ends with `kernel`. An entry is kept if it
    is not 0 and, where `masks` has the path, true there.

    Raises:
      UsageError: no kernels; a mask that fits no kernel, or has another shape.
    """
    kept = {
        path: p != 0
        for path, p in params.items()
        if np.ndim(p) >= 2 and path.rpartition("/")[2] == "kernel"
    }
    if not kept:
        raise UsageError("no parameter of rank 2 or more has a path that ends with 'kernel'")
    for path, mask in (masks or {}).items():
        if path not in kept:
            raise UsageError(f"a mask for {path!r} fits no kernel{nearest(path, kept)}")
        if np.shape(mask) != kept[path].shape:
            raise UsageError(
                f"the mask of {path!r} has shape {np.shape(mask)}, its kernel {kept[path].shape}"
            )
        kept[path] = kept[path] & (jnp.asarray(mask) != 0)
    return kept


def perturb_weights(
    params: Params,
    kind: str,
    size: float,
    key: jax.Array,
    *,
    masks: Mapping[str, Any] | None = None,
) -> Params:
    """Weights with random noise; e is standard normal and independent for each kept entry.

    * `gaussian`: `w + size e`. Compares sizes on one model; it does not compare models of different
      widths, since sparse and narrow models have larger weights.
    * `rms`: `w + size rms_l e`, with `rms_l` the root mean square of the kept entries of layer l.
    * `relative`: `w (1 + size e)`.

    Args:
      params: `{path: array}`.
      kind: one of the above.
      size: standard deviation, 0 or more.
      key: a typed key.
      masks: see `kept_kernels`.

    Raises:
      UsageError: an unknown kind; a size that is negative or not finite; masks that do not fit.

    >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, -2.0]])}
    >>> noisy = perturb_weights(params, "relative", 0.5, jax.random.key(0))["kernel"]
    >>> (noisy == 0).tolist()
    [[False, True], [True, False]]
    """
    _require(kind, [size], RANDOM_KINDS)
    kept = kept_kernels(params, masks)
    kernels = {path: params[path] for path in kept}
    return natural_sort(dict(params) | _perturbed(kind, kernels, kept, np.float32(size), key))


def worst_case_weights(
    view: View | nnx.Module,
    images: Any,
    labels: Any = None,
    *,
    rho: float,
    key: jax.Array,
    steps: int = 20,
    step_size: float | None = None,
    masks: Mapping[str, Any] | None = None,
    batch_size: int = 256,
) -> Params:
    """The weights with the largest loss on these images, within a ball around those of each layer.

    Ascent on the mean cross-entropy over all images. It starts at a random point of the balls; a
    step is `d_l + step_size rho |w_l| g_l / |g_l|` for each layer l, projected to
    `|d_l| <= rho |w_l|`. The worst of all points on the way is returned (the perturbation of arXiv
    2010.01412 and 2004.05884). All steps are one program, with all images on the devices: use at
    most a few thousand.

    Args:
      view: the model or its view; the loss is that of evaluation mode.
      images, labels, batch_size: as for `predict`.
      rho: radius as a share of the norm of a layer's kept entries, 0 to 1.
      key: a typed key, for the start.
      steps: number of ascent steps, 1 or more.
      step_size: as a share of the radius; by default `2.5 / steps`.
      masks: see `kept_kernels`.

    Raises:
      UsageError: as for `predict`; a radius out of range, no steps, masks that do not fit.
    """
    _require("worst_case", [rho], ("worst_case",))
    if steps < 1:
        raise UsageError(f"steps={steps}; expected 1 or more")
    step_size = 2.5 / steps if step_size is None else step_size
    if not 0 < step_size < math.inf:
        raise UsageError(f"step_size={step_size:g}; expected a share of the radius above 0")
    examples = Examples.of(images, labels)
    model = Placed.of(view)
    rows = model.rows(batch_size)
    shape = (batch_size, *examples.images.shape[1:])
    require_labels(examples.labels, num_classes(model, shape, examples.images.dtype))
    batches = list(examples.batches(batch_size, rows))
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    spec = PartitionSpec(None, *batch_sharding(model.mesh, model.rules).spec)
    stacked = place_rows(stacked, NamedSharding(model.mesh, spec))
    params = _seen(model.view)
    kept = kept_kernels(params, masks)
    numbers = np.float32(rho), np.float32(step_size), np.int32(steps)
    return natural_sort(params | model.run(_ascended, kept, stacked, key, *numbers))


def weight_noise_curve(
    view: View | nnx.Module,
    images: Any,
    labels: Any = None,
    *,
    kind: str,
    sizes: Sequence[float],
    key: jax.Array,
    draws: int = 5,
    masks: Mapping[str, Any] | None = None,
    steps: int = 20,
    batch_size: int = 256,
) -> WeightNoiseCurve:
    """Accuracy against the size of a perturbation of the weights.

    Running statistics stay as they are. Draw i is the same noise at every size, times that size.

    Args:
      view: the model or its view.
      images, labels, batch_size: as for `predict`.
      kind: a kind of `perturb_weights`; or `worst_case`, see `worst_case_weights`, which maximises
        the loss on these same images, each draw from its own start.
      sizes: one or more standard deviations, or radii for `worst_case`.
      key: a typed key.
      draws: number of draws for each size.
      masks: see `kept_kernels`.
      steps: number of ascent steps of `worst_case`.

    Raises:
      UsageError: as for `predict`; an unknown kind, no sizes, sizes out of range, no draws, masks
        that do not fit.
    """
    _require(kind, sizes, (*RANDOM_KINDS, "worst_case"))
    if draws < 1 or not len(sizes):
        raise UsageError(f"draws={draws}, {len(sizes)} sizes; expected 1 or more of both")
    view = as_view(view)
    given = dict(labels=labels, batch_size=batch_size)

    def accuracy(size: float, draw: int) -> float:
        draw_key = named(key, "draw", draw)
        if kind == "worst_case":
            noisy = worst_case_weights(
                view, images, rho=size, key=draw_key, steps=steps, masks=masks, **given
            )
        else:
            noisy = perturb_weights(_seen(view), kind, size, draw_key, masks=masks)
        return predict(view.at(noisy), images, **given).accuracy

    accuracies = [[accuracy(size, draw) for draw in range(draws)] for size in sizes]
    return WeightNoiseCurve(kind, tuple(map(float, sizes)), np.array(accuracies))


def _seen(view: View) -> Params:
    """The parameters with the view's masks applied: noise and norms are those of kept weights."""
    return apply_masks(view.params, view.masks)


@functools.partial(jax.jit, static_argnums=0)
def _perturbed(
    kind: str, kernels: Params, kept: Mapping[str, jax.Array], size: Any, key: jax.Array
) -> Params:
    noisy, noises = {}, _normal(key, {path: w.shape for path, w in kernels.items()})
    for path, w in kernels.items():
        noise, values = size * noises[path], w.astype(jnp.float32)
        if kind == "relative":
            noise *= values
        elif kind == "rms":
            noise *= _norm(values * kept[path]) / jnp.sqrt(jnp.maximum(kept[path].sum(), 1))
        noisy[path] = jnp.where(kept[path], (values + noise).astype(w.dtype), w)
    return noisy


@functools.partial(jax.jit, static_argnums=0)
def _ascended(
    rules: Rules,
    view: View,
    kept: Mapping[str, jax.Array],
    batches: Mapping[str, jax.Array],
    key: jax.Array,
    rho: Any,
    step_size: Any,
    steps: Any,
) -> Params:
    params = _seen(view)
    radius = {path: rho * _norm(params[path] * kept[path]) for path in kept}

    def moved(deltas: Params) -> Params:
        return {
            path: (params[path].astype(jnp.float32) + delta).astype(params[path].dtype)
            for path, delta in deltas.items()
        }

    def summed_loss(deltas: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        logits_bc = logits_of(view.at(params | moved(deltas)), batch["inputs"])
        nats_b = jax.nn.softplus(error_log_odds(logits_bc, batch["targets"]))
        return jnp.where(batch["mask"], nats_b, 0).sum()

    def loss_and_gradient(deltas: Params) -> tuple[jax.Array, Params]:
        def add(sums: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(summed_loss)(deltas, batch)), None

        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, deltas)
        return jax.lax.scan(add, zeros, batches)[0]

    def into_ball(deltas: Params) -> Params:
        return {
            path: delta * jnp.minimum(1, radius[path] / jnp.maximum(_norm(delta), _TINY))
            for path, delta in deltas.items()
        }

    def step(number: int, carry: Any) -> Any:
        deltas, worst, most = carry
        loss, gradient = loss_and_gradient(deltas)
        is_worse = (loss > most) | (number == 0)
        worst = jax.tree.map(functools.partial(jnp.where, is_worse), deltas, worst)
        ascent = {path: _unit(gradient[path] * kept[path]) for path in deltas}
        deltas = {
            path: delta + step_size * radius[path] * ascent[path] for path, delta in deltas.items()
        }
        return into_ball(deltas), worst, jnp.where(is_worse, loss, most)

    start = {path: delta * radius[path] for path, delta in _start(key, kept).items()}
    # One round more than there are steps: it judges the result of the last step.
    _, worst, _ = jax.lax.fori_loop(0, steps + 1, step, (start, start, jnp.zeros(())))
    return moved(worst)


_TINY = np.finfo(np.float32).tiny


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum())


def _unit(x: jax.Array) -> jax.Array:
    """Scales to norm 1; zeros stay. Two stages, since squares of tiny gradients would be 0."""
    x = x / jnp.maximum(jnp.abs(x).max(), _TINY)
    return x / jnp.maximum(_norm(x), 1)  # 1 or more by now, except for zeros


def _normal(key: jax.Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Standard normal arrays, cut from one draw: one draw for each would be slow to compile."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes.values()))
    parts = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    return {path: x.reshape(shapes[path]) for path, x in zip(shapes, parts, strict=True)}


def _start(key: jax.Array, kept: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A uniform draw from the unit ball over the kept entries of each layer."""
    # All but two coordinates of a point on a sphere are uniform in the ball (Barthe et al. 2005).
    drawn = _normal(key, {path: (mask.size + 2,) for path, mask in kept.items()})
    inside = {path: x[:-2].reshape(kept[path].shape) * kept[path] for path, x in drawn.items()}
    return {
        path: x / jnp.sqrt(jnp.square(x).sum() + jnp.square(drawn[path][-2:]).sum())
        for path, x in inside.items()
    }


def _require(kind: str, sizes: Sequence[float], kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise UsageError(f"kind={kind!r}; expected one of {', '.join(kinds)}{nearest(kind, kinds)}")
    for size in sizes:
        if kind == "worst_case" and not 0 <= size <= 1:
            raise UsageError(
                f"rho={size:g}; expected a share of the norm of each layer's weights, 0 to 1"
            )
        if not 0 <= size < math.inf:
            raise UsageError(f"size={size:g}; expected a standard deviation of 0 or more")
