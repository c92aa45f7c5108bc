"""A classifier's logits for labelled images."""

from __future__ import annotations

from typing import Any

from flax import nnx

from jaxlab.core import Predictions, View
from jaxlab.evals.images import Examples, predictions_of
from jaxlab.evals.placed import Placed


def predict(
    view: View | nnx.Module,
    images: Any,
    labels: Any = None,
    *,
    batch_size: int = 256,
    index: Any = None,
    domain: str | None = None,
) -> Predictions:
    """Logits of all images, by a model in evaluation mode.

    It runs on the devices of the model's parameters. With several processes each is given all
    images, computes its rows, and gets all logits. Every batch has `batch_size` rows, the last one
    padded, so that one program serves all trainings of one config and any number of images.

    Args:
      view: the model or its view, in either mode; called as `images_bhwc -> logits_bc`, with images
        in [0, 1].
      images: uint8 levels or floats in [0, 1], [n, h, w, c]; or an image set, anything with
        `images`, `labels` and `name`.
      labels: int [n], unless `images` is an image set.
      batch_size: rows of a batch over all devices.
      index: int [n], the number of each image in its data set; by default 0 to n - 1.
      domain: where the images come from; by default the name of the image set.

    Raises:
      UsageError: not a model, or a view without arrays; images of another dtype, rank or range, or
        that the model does not take; labels that are out of range or not one per image; a batch
        size that does not divide over the devices.

    >>> import jax, numpy as np
    >>> class Brightness(nnx.Module):
    ...     def __call__(self, x_bhwc):
    ...         mean_b = x_bhwc.mean(axis=(1, 2, 3))
    ...         return jax.numpy.stack([0.5 - mean_b, mean_b - 0.5], axis=1)
    >>> images = np.array([0, 100, 200, 255], np.uint8).reshape(4, 1, 1, 1)
    >>> predict(Brightness(), images, np.array([0, 0, 1, 0])).accuracy
    0.75
    """
    return predictions_of(Placed.of(view), Examples.of(images, labels, index, domain), batch_size)
