"""All sizes of all image classifiers by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxlab.core import UsageError, nearest
from jaxlab.models import mlp_mixer, resnet, vgg, vit
from jaxlab.models.classifier import ClassifierConfig
from jaxlab.models.mlp import MLPConfig
from jaxlab.models.small_cnn import SmallCNNConfig

CLASSIFIERS: dict[str, ClassifierConfig] = {
    "mlp": MLPConfig(),
    "small_cnn": SmallCNNConfig(),
    **vgg.SIZES,
    **resnet.SIZES,
    **vit.SIZES,
    **mlp_mixer.SIZES,
}
"""Configs by name; the sources of the sizes are beside the table of each model."""


def classifier_config(name: str, **changes: Any) -> Any:
    """The config of a classifier by its name, with changes to its fields.

    Args:
      name: a name of `CLASSIFIERS`.
      changes: fields of its config, such as `num_classes`, `image_shape`, `width`, `depth`.

    Raises:
      UsageError: an unknown name or field; names the nearest.

    >>> classifier_config("resnet20", num_classes=100).build
    ... # doctest: +ELLIPSIS
    <bound method ResNetConfig.build of ResNetConfig(image_shape=(32, 32, 3), num_classes=100, ...
    """
    if name not in CLASSIFIERS:
        raise UsageError(
            f"no classifier {name!r}{nearest(name, CLASSIFIERS)}; there are "
            f"{', '.join(CLASSIFIERS)}"
        )
    config = CLASSIFIERS[name]
    known = [field.name for field in dataclasses.fields(config)]
    for field in changes:
        if field not in known:
            raise UsageError(
                f"{type(config).__name__} has no field {field!r}{nearest(field, known)}"
            )
    return dataclasses.replace(config, **changes)
