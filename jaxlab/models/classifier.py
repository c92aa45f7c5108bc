"""What all image classifiers share: the first fields of their configs, input and head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError, from_dict, platform
from jaxlab.nn import ImageInput, projection


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Images and classes of a classifier.

    Every classifier config has the integers `width` and `depth`, which scale all layers, and
    `build(rngs)`, which makes the model.

    Attributes:
      image_shape: (h, w, c).
      num_classes: the number of logits.
      mean, std: of the images, one for each channel or one for all, in units of [0, 1]; the model
        computes `(image - mean) / std`.
      width, depth: each model says what they scale.
      dtype: of the computation; 'auto' is bfloat16 on TPU and GPU, else float32. Parameters and
        logits are float32.
    """

    image_shape: tuple[int, ...] = (32, 32, 3)
    num_classes: int = 10
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    width: int = 1
    depth: int = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self):
        for name in ("num_classes", "width", "depth"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        ImageInput(self.image_shape, self.mean, self.std)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Makes the model."""
        raise NotImplementedError

    @property
    def compute_dtype(self) -> Any:
        """The dtype of the computation on the platform at hand."""
        if self.dtype == "auto":
            return jnp.dtype("float32" if platform() == "cpu" else "bfloat16")
        return jnp.dtype(self.dtype)


class Classifier(nnx.Module):
    """Images in [0, 1] to logits: checks and normalises the input, then features and a linear head.

    A subclass sets `head` and defines `features`.
    """

    config_class: ClassVar[type[ClassifierConfig]]
    if TYPE_CHECKING:
        head: nnx.LinearGeneral

    def __init__(self, config: ClassifierConfig):
        self.config = config
        self.dtype = config.compute_dtype
        self.input = ImageInput(config.image_shape, config.mean, config.std, dtype=self.dtype)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], *, rngs: nnx.Rngs | None = None) -> Self:
        """Builds the model from the dict form of its config (`core.to_dict`)."""
        config = from_dict(cls.config_class, values)
        make: Callable[..., Self] = cls  # each model takes its config and rngs
        return make(config, rngs=nnx.Rngs(0) if rngs is None else rngs)

    def __call__(self, images_bhwc: jax.Array) -> jax.Array:
        """Logits of images.

        Args:
          images_bhwc: floats in [0, 1], of the config's shape.

        Returns:
          float32 [b, num_classes].

        Raises:
          UsageError: images of another shape or dtype.
        """
        return self.head(self.features(images_bhwc)).astype(jnp.float32)

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """The input of the head, [b, d]."""
        raise NotImplementedError


def linear_head(width: int, config: ClassifierConfig, *, rngs: nnx.Rngs) -> nnx.LinearGeneral:
    """The last layer: features [b, d] to logits, with a bias."""
    return projection(
        width,
        config.num_classes,
        ("embed", "vocab"),
        use_bias=True,
        dtype=config.compute_dtype,
        rngs=rngs,
    )
