"""Adversarial images: the fast gradient sign method, and projected gradient descent in two norms.

An attack is made once, `attack = pgd(view, 8 / 255)`, and called as `attack(key, batch)`. All
attacks in one norm on models of one config are one program: radius, steps, restarts and weights are
its inputs, so that curves over them compile once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import (
    Batch,
    Predictions,
    Rules,
    UsageError,
    View,
    as_view,
    constrain,
    num_processes,
    require_labels,
)
from jaxlab.data import unit_images
from jaxlab.evals.images import (
    Examples,
    error_log_odds,
    logits_of,
    num_classes,
    predicted_logits,
    predictions_of,
)
from jaxlab.evals.placed import Placed

NORMS = ("linf", "l2")
"""The norms in which the change of an image is measured, over height, width and channels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attack:
    """A search near an image for one that the model gets wrong; see `fgsm` and `pgd`.

    Attributes:
      view: the model under attack.
      eps: largest change in `norm`, of images in [0, 1].
      norm: `linf` or `l2`.
      steps: number of gradient steps, 0 or more.
      step_size: length of a step in `norm`.
      random_start: start at a random point of the ball, not at the image.
      restarts: number of searches; the worst result for each image is kept.
      targeted: move towards `targets`, not away from them.
    """

    view: View
    eps: float
    norm: str
    steps: int
    step_size: float
    random_start: bool = True
    restarts: int = 1
    targeted: bool = False

    def __post_init__(self):
        _require_radius(self.eps, self.norm)
        for name, least in (("steps", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)}; expected {least} or more")
        if not (0 <= self.step_size < math.inf) or not self.step_size and self.eps and self.steps:
            raise UsageError(
                f"step_size={self.step_size:g}; expected a length above 0 in {self.norm}, such as "
                f"2.5 * eps / steps"
            )
        if self.restarts > 1 and not self.random_start:
            raise UsageError(
                f"restarts={self.restarts} without random_start all find the same; set "
                "random_start=True or restarts=1"
            )

    def __call__(self, key: jax.Array, batch: Batch) -> jax.Array:
        """The attacked images, float32 [b, h, w, c] in [0, 1], in one program.

        The model is attacked in evaluation mode, on the devices of its parameters. The random draws
        for an image depend only on `key` and its `index`: they are the same in every batch and on
        every mesh.

        Args:
          key: a typed key.
          batch: `inputs` [b, h, w, c], uint8 levels or floats in [0, 1]; `targets` int [b], the
            labels of the images or, if `targeted`, the labels to move to; optionally `index` int
            [b], by default 0 to b - 1.

        Raises:
          UsageError: images of another dtype, rank or range, or that the model does not take;
            targets out of range; rows that do not divide over the devices; a radius larger than
            any change of such images.
        """
        rows = Examples.of(batch["inputs"], batch["targets"], batch.get("index"))
        model = Placed.of(self.view)
        shape = (len(rows.images) * num_processes(), *rows.images.shape[1:])
        model.rows(shape[0])
        require_labels(rows.labels, num_classes(model, shape, rows.images.dtype))
        placed = model.place({"inputs": rows.images, "targets": rows.labels, "index": rows.index})
        return self.on(model, key, placed)

    def on(self, model: Placed, key: jax.Array, batch: Batch) -> jax.Array:
        """The attacked images of a batch that has been checked and lies on the model's devices."""
        diagonal = math.sqrt(math.prod(batch["inputs"].shape[1:]))
        if self.norm == "l2" and self.eps > diagonal * (1 + 1e-6):
            shape = "x".join(map(str, batch["inputs"].shape[1:]))
            raise UsageError(
                f"eps={self.eps:g} in l2 is beyond any change of a {shape} image in [0, 1], which "
                f"is at most {diagonal:.4g}{_in_levels(self.eps)}"
            )
        batch = {name: batch[name] for name in ("inputs", "targets", "index")}
        return model.run(_search, self.norm, key, batch, self._numbers)

    @property
    def _numbers(self) -> _Numbers:
        return _Numbers(
            np.float32(self.eps),
            np.float32(self.step_size),
            np.int32(self.steps),
            np.int32(self.restarts),
            np.bool_(self.random_start),
            np.bool_(self.targeted),
        )


def fgsm(view: View | nnx.Module, eps: float, *, targeted: bool = False) -> Attack:
    """The fast gradient sign attack: `clip(x + eps sign(dL/dx), 0, 1)` (arXiv 1412.6572).

    Args:
      view: the model or its view; it is attacked in evaluation mode.
      eps: largest change of a value, of images in [0, 1]: 8 levels are `8 / 255`.
      targeted: go against the gradient, towards `targets` instead of away from them.

    Raises:
      UsageError: not a model; a radius that is negative or above 1.
    """
    return Attack(as_view(view), eps, "linf", 1, eps, random_start=False, targeted=targeted)


def pgd(
    view: View | nnx.Module,
    eps: float,
    norm: str = "linf",
    *,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    targeted: bool = False,
) -> Attack:
    """Projected gradient descent (arXiv 1706.06083): ascent on the loss within a ball.

    A step is `x + a sign(g)` in l-inf and `x + a g / |g|` in l2, where g is the gradient of the
    summed loss of the rows at x; then x is projected to the ball around the image and clipped to
    [0, 1]. g is the gradient of `log((1 - p_y) / p_y)`. It equals that of the cross-entropy up to a
    positive factor per row, so the steps are the same, but it does not vanish in float32 where the
    model is very sure. The result is the last x, even if an earlier one or the image itself was
    worse. With several restarts, each image keeps a successful result if there is one, and among
    equals the one with the largest loss. Images that are wrong from the start are attacked too.

    Args:
      view: the model or its view; it is attacked in evaluation mode.
      eps: radius in `norm`, of images in [0, 1]. In l-inf 1 is no bound at all.
      norm: `linf`, or `l2` over height, width and channels of an image.
      steps: number of gradient steps, 1 or more.
      step_size: a; by default `2.5 * eps / steps`.
      random_start: start uniformly in the ball, clipped to [0, 1], instead of at the image.
      restarts: number of searches, each from its own start.
      targeted: go towards `targets` instead of away from them.

    Raises:
      UsageError: not a model; an unknown norm; a radius or step size that is negative, or a radius
        that looks like levels; no steps or restarts; restarts without a random start.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}; expected 1 or more")
    step_size = 2.5 * eps / steps if step_size is None else step_size
    return Attack(as_view(view), eps, norm, steps, step_size, random_start, restarts, targeted)


def random_search(
    view: View | nnx.Module, eps: float, norm: str = "linf", *, draws: int = 10
) -> Attack:
    """The worst of several points drawn uniformly from the ball: an attack without gradients.

    Args:
      view: the model or its view.
      eps: radius in `norm`, of images in [0, 1].
      norm: `linf` or `l2`.
      draws: number of points, 1 or more.

    Raises:
      UsageError: as for `pgd`.
    """
    return Attack(as_view(view), eps, norm, steps=0, step_size=0.0, restarts=draws)


def attack_accuracy(
    view: View | nnx.Module,
    attack: Attack,
    images: Any,
    labels: Any = None,
    *,
    key: jax.Array,
    targets: Any = None,
    batch_size: int = 256,
    index: Any = None,
    domain: str | None = None,
) -> Predictions:
    """A model's logits for attacked images.

    Images are attacked on `attack.view` and predicted by `view`. Where these are different models
    it is a transfer attack.

    Args:
      view: the model that predicts, or its view.
      attack: see `pgd`.
      images, labels, batch_size, index, domain: as for `predict`; random draws depend on `key` and
        `index`.
      key: a typed key.
      targets: int [n], the labels that a targeted attack moves to.

    Returns:
      Predictions with the labels of the images.

    Raises:
      UsageError: as for `predict` and for the attack; targets without a targeted attack, or a
        targeted attack without targets.
    """
    if attack.targeted != (targets is not None):
        raise UsageError(
            "a targeted attack needs targets, int [n], the labels to move to"
            if attack.targeted
            else "targets are for a targeted attack; make it with targeted=True, or leave them out"
        )
    examples = Examples.of(images, labels, index, domain)
    model = Placed.of(view)
    attacked = model if attack.view is view else Placed.of(attack.view, model.mesh)
    model.rows(batch_size)
    shape = (batch_size, *examples.images.shape[1:])
    count = num_classes(attacked, shape, examples.images.dtype)
    aims = examples
    if targets is not None:
        aims = Examples.of(examples.images, targets, examples.index)
    require_labels(aims.labels, count)

    def attacked_logits(batch: Mapping[str, jax.Array]) -> jax.Array:
        return model.run(predicted_logits, attack.on(attacked, key, batch))

    predictions = predictions_of(model, aims, batch_size, attacked_logits)
    require_labels(examples.labels, predictions.logits.shape[1])
    return dataclasses.replace(
        predictions, labels=examples.labels.astype(np.int32), domain=examples.domain
    )


class _Numbers(NamedTuple):
    """Inputs of `_search`."""

    eps: Any
    step_size: Any
    steps: Any
    restarts: Any
    random_start: Any
    targeted: Any


class _Worst(NamedTuple):
    """The worst result of each image so far."""

    x_bhwc: jax.Array
    is_success_b: jax.Array
    loss_b: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 2))
def _search(
    rules: Rules,
    view: View,
    norm: str,
    key: jax.Array,
    batch: Batch,
    numbers: _Numbers,
) -> jax.Array:
    image_bhwc, labels_b = unit_images(batch["inputs"]), batch["targets"]
    shape = image_bhwc.shape[1:]
    keys_b = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    eps, sign = numbers.eps, jnp.where(numbers.targeted, -1.0, 1.0)
    unit, project, draw = _BALLS[norm]

    def judged(x_bhwc: jax.Array) -> _Worst:
        logits_bc = logits_of(view, x_bhwc)
        is_label_b = logits_bc.argmax(axis=1) == labels_b
        is_success_b = is_label_b == numbers.targeted
        return _Worst(x_bhwc, is_success_b, sign * error_log_odds(logits_bc, labels_b))

    # Rows do not affect each other, so the gradient of the sum holds the gradient of each row.
    gradient = jax.grad(lambda x_bhwc: judged(x_bhwc).loss_b.sum())

    def placed(delta_bhwc: jax.Array) -> jax.Array:
        return constrain(jnp.clip(image_bhwc + delta_bhwc, 0, 1), "batch", None, None, None)

    def step(_: int, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = x_bhwc + numbers.step_size * unit(gradient(x_bhwc))
        return placed(project(x_bhwc - image_bhwc, eps))

    def restart(number: int, worst: _Worst) -> _Worst:
        start_keys_b = jax.vmap(jax.random.fold_in, (0, None))(keys_b, number)
        delta_bhwc = jax.vmap(lambda key: draw(key, shape))(start_keys_b) * eps
        x_bhwc = placed(jnp.where(numbers.random_start, delta_bhwc, 0))
        result = judged(jax.lax.fori_loop(0, numbers.steps, step, x_bhwc))
        is_same_b = result.is_success_b == worst.is_success_b
        is_worse_b = jnp.where(is_same_b, result.loss_b > worst.loss_b, result.is_success_b)
        is_worse_b |= number == 0

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(is_worse_b.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, result, worst)

    nothing_b = jnp.zeros(labels_b.shape)
    worst = _Worst(image_bhwc, nothing_b > 0, nothing_b)
    return jax.lax.fori_loop(0, numbers.restarts, restart, worst).x_bhwc


def _norm(x_bhwc: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x_bhwc).sum(axis=(1, 2, 3), keepdims=True))


def _over_l2(x_bhwc: jax.Array) -> jax.Array:
    """Rows of length 1; zeros stay. Scaled first, since squares of tiny gradients would be 0."""
    most_b111 = jnp.abs(x_bhwc).max(axis=(1, 2, 3), keepdims=True)
    x_bhwc = x_bhwc / jnp.where(most_b111 > 0, most_b111, 1)
    return x_bhwc / jnp.maximum(_norm(x_bhwc), 1)  # 1 or more by now, except for zeros


def _into_l2(delta_bhwc: jax.Array, eps: jax.Array) -> jax.Array:
    norm_b111 = _norm(delta_bhwc)
    return delta_bhwc * jnp.where(norm_b111 > eps, eps / norm_b111, 1)


def _draw_linf(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def _draw_l2(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # All but two coordinates of a point on a sphere are uniform in the ball (Barthe et al. 2005).
    x = jax.random.normal(key, (math.prod(shape) + 2,))
    return (x[:-2] / jnp.sqrt(jnp.square(x).sum())).reshape(shape)


class _Ball(NamedTuple):
    """Direction of a step from a gradient; projection to radius eps; uniform draw of radius 1."""

    unit: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, jax.Array], jax.Array]
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]


_BALLS = {
    "linf": _Ball(jnp.sign, lambda delta_bhwc, eps: jnp.clip(delta_bhwc, -eps, eps), _draw_linf),
    "l2": _Ball(_over_l2, _into_l2, _draw_l2),
}


def _require_radius(eps: float, norm: str) -> None:
    if norm not in NORMS:
        raise UsageError(f"norm={norm!r}; expected one of {', '.join(NORMS)}")
    if not (0 <= eps < math.inf):
        raise UsageError(f"eps={eps:g}; expected 0 or more, of images in [0, 1], such as 8 / 255")
    if norm == "linf" and eps > 1:
        raise UsageError(
            f"eps={eps:g} in linf is beyond any change of an image in [0, 1]; expected 0 to 1"
            f"{_in_levels(eps)}"
        )


def _in_levels(eps: float) -> str:
    return f": {eps:g} looks like levels, write {eps:g} / 255"
