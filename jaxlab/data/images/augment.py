"""Augmentation of image batches, jitted with the training step and deterministic given a key.

An augmentation is a function `(key, batch) -> batch`. It takes `inputs` [b, h, w, c] as uint8 or as
floats in [0, 1] (`data.unit_images`) and returns floats in [0, 1]; only `mixup` changes other
entries of the batch. How row r is augmented depends on the key and r alone, not on the other rows,
their number or their sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import Batch, Loss, Objective, UsageError, named, nearest
from jaxlab.data.batches import require_positive
from jaxlab.data.images import image_operations as ops
from jaxlab.data.images.unit_images import unit_images

Augmentation = Callable[[jax.Array, Batch], dict[str, jax.Array]]
"""`augmentation(key, batch) -> batch`, pure."""

OPERATIONS = (
    "identity",
    "auto_contrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The 14 operations of RandAugment (arXiv 1909.13719, figure 2)."""


def augmented(objective: Objective, *augmentations: Augmentation) -> Objective:
    """Wraps an objective so that it sees augmented batches, for training.

    >>> from jaxlab import objectives
    >>> objective = augmented(objectives.classify, crop(padding=4), flip())

    Args:
      objective: any `objective(model, batch, carry, key) -> Loss`. It gets the unchanged key.
      augmentations: applied in order, as by `compose`, with the key `named(key, "augment")`.

    Returns:
      An objective. It raises a UsageError if its key is None.

    Raises:
      UsageError: no augmentation.
    """
    augment = compose(*augmentations)

    def augmented_objective(
        model: Callable[..., Any], batch: Batch, carry: Any = None, key: jax.Array | None = None
    ) -> Loss:
        if key is None:
            raise UsageError(
                "augmentation needs a key and got None; pass one, or evaluate the objective "
                "without augmentation"
            )
        return objective(model, augment(named(key, "augment"), batch), carry, key)

    return augmented_objective


def compose(*augmentations: Augmentation) -> Augmentation:
    """Returns one augmentation that applies several in order, each with its own key.

    Raises:
      UsageError: no augmentation.
    """
    if not augmentations:
        raise UsageError("no augmentation; pass at least one, such as augment.flip()")

    def composed(key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        for number, augmentation in enumerate(augmentations):
            batch = augmentation(named(key, number), batch)
        return dict(batch)

    return composed


def crop(padding: int = 4, mode: str = "zero") -> Augmentation:
    """Pads each image on all sides and crops it back to its size at a random position.

    Args:
      padding: pixels on each side.
      mode: `zero` pads with black, `reflect` mirrors the image at its outermost pixels.

    Raises:
      UsageError: a padding below 1, or an unknown mode.
    """
    require_positive(padding=padding)
    modes = {"zero": "constant", "reflect": "reflect"}
    if mode not in modes:
        raise UsageError(f"mode={mode!r}; expected {' or '.join(modes)}{nearest(mode, modes)}")

    def crop_one(key: jax.Array, x_hwc: jax.Array) -> jax.Array:
        sides = ((padding, padding), (padding, padding), (0, 0))
        begin = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        padded = jnp.pad(x_hwc, sides, mode=modes[mode])
        return jax.lax.dynamic_slice(padded, (begin[0], begin[1], 0), x_hwc.shape)

    return _each(crop_one)


def flip(rate: float = 0.5) -> Augmentation:
    """Flips each image left to right with probability `rate`.

    Raises:
      UsageError: a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise UsageError(f"rate={rate}; expected a probability from 0 to 1")

    def flip_one(key: jax.Array, x_hwc: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, float(rate)), x_hwc[:, ::-1], x_hwc)

    return _each(flip_one)


def cutout(size: int, fill: float | Sequence[float] = 0.0) -> Augmentation:
    """Fills a square around a random pixel (arXiv 1708.04552); it may extend beyond the border.

    Args:
      size: side of the square in pixels; the paper uses 16 for CIFAR-10, 8 for CIFAR-100.
      fill: a number in [0, 1], or one per channel; the paper uses the mean of the data, see
        `channel_statistics`.

    Raises:
      UsageError: a size below 1, or a fill outside [0, 1].
    """
    require_positive(size=size)
    _require_unit(fill)

    def cut_one(key: jax.Array, x_hwc: jax.Array) -> jax.Array:
        height, width, _ = x_hwc.shape
        centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
        top, left = centre - size // 2
        row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
        inside = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
        return jnp.where(inside, jnp.asarray(fill, x_hwc.dtype), x_hwc)

    return _each(cut_one)


def mixup(num_classes: int, alpha: float = 0.2) -> Augmentation:
    """Mixes each image and its target with those of another row (arXiv 1710.09412).

    Row r becomes lambda_r x_r + (1 - lambda_r) x_p(r), with lambda_r ~ Beta(alpha, alpha) drawn per
    row, and p a random permutation of the rows, which is the only thing here that depends on their
    number. `targets` become probabilities float32 [b, c]; a row counts (`mask`) if both do.

    Args:
      num_classes: c; labels must be below it.
      alpha: above 0; larger values mix more.

    Raises:
      UsageError: an `alpha` that is not above 0, or `num_classes` below 1.
    """
    require_positive(num_classes=num_classes)
    if not alpha > 0:
        raise UsageError(f"alpha={alpha}; expected a number above 0")

    def mix(key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        images = unit_images(batch["inputs"])
        targets = batch["targets"]
        if targets.ndim == 1:
            targets = jax.nn.one_hot(targets, num_classes)
        keys = _row_keys(named(key, "share"), len(images))
        weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
        other = jax.random.permutation(named(key, "partner"), len(images))

        def blend(values: jax.Array) -> jax.Array:
            own = weight.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
            return own * values + (1 - own) * values[other]

        mixed = {**batch, "inputs": blend(images), "targets": blend(targets)}
        if "mask" in batch:
            mixed["mask"] = batch["mask"] & batch["mask"][other]
        return mixed

    return mix


def rand_augment(
    num_ops: int = 2,
    magnitude: float = 9.0,
    *,
    fill: float = 0.5,
    operations: Sequence[str] = OPERATIONS,
) -> Augmentation:
    """Applies randomly drawn operations to each image, all at one magnitude (arXiv 1909.13719).

    The magnitude M from 0 to 10 spans the ranges of AutoAugment (arXiv 1805.09501): rotation by
    3 M degrees, shear by 0.03 M, translation by 0.045 M of the side, each with a random sign;
    color, contrast, brightness and sharpness by a factor 1 +- 0.09 M; posterize keeps 8 - 0.4 M
    bits; solarize inverts levels from 256 - 25.6 M on. Every operation gets stronger with M; in the
    authors' code, factors, bits and thresholds do not. Geometric operations take the nearest pixel.

    Args:
      num_ops: N, the number of operations drawn per image, with replacement.
      magnitude: M.
      fill: the value of pixels from outside the image; grey as in the authors' code.
      operations: the operations to draw from, a subset of `OPERATIONS`.

    Raises:
      UsageError: `num_ops` below 1, a magnitude outside [0, 10], a fill outside [0, 1], an unknown
        or repeated operation, or none; at the first batch, images without 1 or 3 channels.
    """
    require_positive(num_ops=num_ops)
    if not 0 <= magnitude <= 10:
        raise UsageError(f"magnitude={magnitude}; expected a number from 0 to 10")
    _require_unit(fill)
    for name in operations:
        if name not in OPERATIONS:
            raise UsageError(
                f"unknown operation {name!r}; expected some of {', '.join(OPERATIONS)}"
                f"{nearest(name, OPERATIONS)}"
            )
    if not operations or len(set(operations)) < len(operations):
        raise UsageError(f"operations={tuple(operations)}; expected at least one, and each once")

    def change_one(key: jax.Array, x_hwc: jax.Array) -> jax.Array:
        def step(x_hwc: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            which, sign = jax.random.split(named(key, number))
            choice = jax.random.randint(which, (), 0, len(operations))
            signed = jnp.where(jax.random.bernoulli(sign), magnitude, -magnitude)
            return _operate(x_hwc, operations, choice, magnitude, signed, fill), None

        return jax.lax.scan(step, x_hwc, jnp.arange(num_ops))[0]

    return _each(change_one, one_by_one_on_cpu=True)


def _operate(
    x_hwc: jax.Array,
    operations: Sequence[str],
    choice: jax.Array,
    magnitude: float,
    signed: jax.Array,
    fill: float,
) -> jax.Array:
    """Applies operation number `choice`.

    Under `vmap`, every branch of a switch is computed for every image. So all geometric operations
    share one gather, and only their matrix is chosen.
    """
    height, width, channels = x_hwc.shape
    if channels not in (1, 3):
        raise UsageError(f"images with {channels} channels; rand_augment takes 1 or 3")
    side = 0.045 * signed
    matrices = {
        "rotate": lambda: ops.rotation(3.0 * signed, height, width),
        "shear_x": lambda: ops.shear_x(0.03 * signed),
        "shear_y": lambda: ops.shear_y(0.03 * signed),
        "translate_x": lambda: ops.translation(side * width, 0.0),
        "translate_y": lambda: ops.translation(0.0, side * height),
    }
    factor = 1 + 0.09 * signed
    changes = {
        "auto_contrast": ops.auto_contrast,
        "equalize": ops.equalize,
        "solarize": lambda x: ops.solarize(x, (256 - 25.6 * magnitude) / 255),
        "posterize": lambda x: ops.posterize(x, 8 - round(0.4 * magnitude)),
        "color": lambda x: ops.color(x, factor),
        "contrast": lambda x: ops.contrast(x, factor),
        "brightness": lambda x: ops.brightness(x, factor),
        "sharpness": lambda x: ops.sharpness(x, factor),
    }
    branches = [name for name in operations if name in changes]
    if branches:
        number = jnp.array([branches.index(n) + 1 if n in changes else 0 for n in operations])
        x_hwc = jax.lax.switch(
            number[choice], [lambda x: x, *(changes[name] for name in branches)], x_hwc
        )
    if matrices.keys() & set(operations):
        table = [matrices.get(name, lambda: ops.translation(0.0, 0.0))() for name in operations]
        x_hwc = ops.affine(x_hwc, jnp.stack(table)[choice], fill)
    return x_hwc


def _each(
    change: Callable[[jax.Array, jax.Array], jax.Array], *, one_by_one_on_cpu: bool = False
) -> Augmentation:
    """Returns the augmentation that applies `change` to each image with the key of its row.

    With `one_by_one_on_cpu`, a CPU computes only the branch of a `lax.switch` that was drawn.
    """

    def all_at_once(keys: jax.Array, images: jax.Array) -> jax.Array:
        return jax.vmap(change)(keys, images)

    def one_by_one(keys: jax.Array, images: jax.Array) -> jax.Array:
        return jax.lax.map(lambda pair: change(*pair), (keys, images))

    def augmentation(key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        images = unit_images(batch["inputs"])
        keys = _row_keys(key, len(images))
        if one_by_one_on_cpu:
            images = jax.lax.platform_dependent(keys, images, cpu=one_by_one, default=all_at_once)
        else:
            images = all_at_once(keys, images)
        return {**batch, "inputs": images}

    return augmentation


def _require_unit(fill: float | Sequence[float]) -> None:
    if not all(0 <= level <= 1 for level in ([fill] if isinstance(fill, (int, float)) else fill)):
        raise UsageError(f"fill={fill}; expected numbers in [0, 1], black to white")


def _row_keys(key: jax.Array, num_rows: int) -> jax.Array:
    return jax.vmap(lambda row: named(key, row))(jnp.arange(num_rows))
