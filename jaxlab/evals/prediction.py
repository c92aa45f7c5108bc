"""What a classifier says of labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxlab.core import RULES, Params, Predictions, Rules, View
from jaxlab.evals.classifier import Classifier, Examples


def predict(
    view: View,
    images: Any,
    labels: Any = None,
    *,
    batch_size: int = 256,
    params: Params | None = None,
    state: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    index: Any = None,
    domain: str | None = None,
) -> Predictions:
    """Logits of all images by a model in evaluation mode.

    Every batch has `batch_size` rows, the last one padded, so that one program serves all calls
    with one view and one size of images, with whatever weights: it does not change with the number
    of images. Make a `View` once and pass others' weights as `params`; another view is another
    program.

    Args:
      view: the model, in either mode; called as `images_bhwc -> logits_bc`, the images in [0, 1].
      images: uint8 levels or floats in [0, 1], [n, h, w, c]; or an image set, anything with
        `images`, `labels` and `name`.
      labels: int [n], unless `images` is an image set.
      batch_size: rows of a batch over all devices.
      params: `{path: array}`; by default the view's own.
      state: `{path: array}`, such as running statistics; by default the view's own.
      mesh: the devices; by default those of the parameters. Parameters that lie elsewhere are
        moved there. With several hosts, each has all images, computes its rows, and gets all
        logits.
      rules: logical axis to mesh axes.
      index: int [n], the number of each image in its data set; by default 0 to n - 1.
      domain: where the images come from; by default the name of the image set.

    Raises:
      UsageError: images of another dtype, rank or range, or that the model does not take; labels
        out of range or not one an image; a batch size that does not divide over the devices.

    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> class Brightness(nnx.Module):
    ...     def __call__(self, x_bhwc):
    ...         mean_b = x_bhwc.mean(axis=(1, 2, 3))
    ...         return jax.numpy.stack([0.5 - mean_b, mean_b - 0.5], axis=1)
    >>> images = np.array([0, 100, 200, 255], np.uint8).reshape(4, 1, 1, 1)
    >>> predict(View.of(Brightness()), images, np.array([0, 0, 1, 0])).accuracy
    0.75
    """
    examples = Examples.of(images, labels, index, domain)
    return Classifier.of(view, params, state, mesh, rules).predict(examples, batch_size)
