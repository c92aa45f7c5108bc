"""Labelled images through a classifier, batch by batch, and the logits that it returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import (
    Predictions,
    Rules,
    UsageError,
    View,
    batch_sharding,
    constrain,
    require_labels,
    whole,
)
from jaxlab.data import unit_images
from jaxlab.evals.placed import Placed


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images on the host.

    Attributes:
      images: uint8 or float32 in [0, 1], [n, h, w, c].
      labels: int [n].
      index: int32 [n], the number of each image in its data set.
      domain: where they come from.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    domain: str

    @classmethod
    def of(
        cls, images: Any, labels: Any = None, index: Any = None, domain: str | None = None
    ) -> Examples:
        """Checks images and labels, or an image set: anything with `images`, `labels`, `name`.

        Raises:
          UsageError: no images, or images of another dtype, rank or range; labels that are missing
            or not one per image.
        """
        if hasattr(images, "images"):
            if labels is not None:
                raise UsageError("an image set has its own labels; leave out labels=")
            domain = getattr(images, "name", "") if domain is None else domain
            images, labels = images.images, images.labels
        if labels is None:
            raise UsageError("images without labels; give labels, int [n], or an image set")
        images, labels = np.asarray(images), np.asarray(labels)
        # Every uint8 value is valid; of floats all values are checked.
        is_levels = images.dtype == np.uint8 and images.ndim == 4
        unit_images(images[:1] if is_levels else images)
        if not len(images):
            raise UsageError(f"no images: shape {images.shape}; give at least one")
        images = images if is_levels else images.astype(np.float32)
        index = np.arange(len(images)) if index is None else np.asarray(index)
        for noun, array in (("labels", labels), ("index", index)):
            if array.shape != images.shape[:1]:
                raise UsageError(
                    f"{noun} of shape {array.shape} for images of shape {images.shape}; expected "
                    f"({len(images)},), one per image"
                )
        return cls(images, labels, index.astype(np.int32), domain or "")

    def batches(self, size: int, rows: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
        """Batches of `size` rows in order, the last one padded with zeros; only `rows` of each.

        They hold `inputs`, `targets`, `index`, and `mask`, which is false in the padding.
        """
        columns = {"inputs": self.images, "targets": self.labels, "index": self.index}
        for start in range(0, len(self.images), size):
            count = min(size, len(self.images) - start)

            def of_rows(column: np.ndarray, start: int = start, count: int = count) -> np.ndarray:
                part = column[start : start + count]
                if count < size:
                    pad = np.zeros((size - count, *column.shape[1:]), column.dtype)
                    part = np.concatenate([part, pad])
                return part if len(rows) == size else part[list(rows)]

            batch = {name: of_rows(column) for name, column in columns.items()}
            yield batch | {"mask": np.array(rows) < count}


def num_classes(model: Placed, shape: tuple[int, ...], dtype: Any) -> int:
    """The number of logits per image that a classifier returns for a batch of this shape and dtype.

    Raises:
      UsageError: the model does not take such images, or does not return logits [b, c].
    """
    rows = batch_sharding(model.mesh, model.rules)
    images = jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
    try:
        out = model.run(predicted_logits.eval_shape, images)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"the model does not take images of shape {shape[1:]} and dtype {dtype}: {reason}"
        ) from error
    return out.shape[1]


def predictions_of(
    model: Placed,
    examples: Examples,
    batch_size: int,
    logits: Callable[[dict[str, jax.Array]], jax.Array] | None = None,
) -> Predictions:
    """The logits of all examples, by default those of their images as they are.

    Args:
      model: the classifier.
      examples: images and labels.
      batch_size: rows of a batch over all devices.
      logits: `batch -> logits_bc`, on the devices.

    Raises:
      UsageError: a batch size that does not divide over the devices; images that the model does not
        take; labels out of range.
    """
    rows = model.rows(batch_size)
    shape = (batch_size, *examples.images.shape[1:])
    require_labels(examples.labels, num_classes(model, shape, examples.images.dtype))
    if logits is None:

        def logits(batch: dict[str, jax.Array]) -> jax.Array:
            return model.run(predicted_logits, batch["inputs"])

    parts, running = [], None
    for batch in examples.batches(batch_size, rows):
        # The devices compute one batch while the logits of the previous one are fetched.
        running, done = logits(model.place(batch)), running
        if done is not None:
            parts.append(np.asarray(whole(done)))
    parts.append(np.asarray(whole(running)))
    return Predictions(
        np.concatenate(parts)[: len(examples.labels)],
        examples.labels.astype(np.int32),
        examples.index,
        examples.domain,
    )


def logits_of(view: View, images_bhwc: jax.Array) -> jax.Array:
    """Float32 logits [b, c] of uint8 or unit float images; for use under `jax.jit`."""
    logits = view(unit_images(images_bhwc))
    if getattr(logits, "ndim", None) != 2:
        what = getattr(logits, "shape", type(logits).__name__)
        raise UsageError(f"the model returns {what}; a classifier returns logits [b, c]")
    if logits.shape[1] < 2:
        raise UsageError("the model returns one logit; a classifier has one for each of 2 or more")
    return constrain(logits.astype(jnp.float32), "batch", None)


@functools.partial(jax.jit, static_argnums=0)
def predicted_logits(rules: Rules, view: View, images_bhwc: jax.Array) -> jax.Array:
    """`logits_of` as a program, for `Placed.run`."""
    return logits_of(view, images_bhwc)


def error_log_odds(logits_bc: jax.Array, labels_b: jax.Array) -> jax.Array:
    """log((1 - p_y) / p_y) of the label y, [b]: `logsumexp_{j != y} z_j - z_y`.

    The cross-entropy is its softplus and so increases with it: their gradients differ by a positive
    factor per row. But where a model is very sure, p_y rounds to 1 in float32 and the cross-entropy
    and its gradient round to 0; this does not.

    >>> log_odds = error_log_odds(jnp.array([[200.0, 0.0]]), jnp.array([0]))
    >>> float(log_odds[0])
    -200.0
    """
    label_bc = labels_b[:, None] == jnp.arange(logits_bc.shape[1])[None]
    others_b = jax.nn.logsumexp(jnp.where(label_bc, -jnp.inf, logits_bc), axis=1)
    return others_b - jnp.where(label_bc, logits_bc, 0).sum(axis=1)
