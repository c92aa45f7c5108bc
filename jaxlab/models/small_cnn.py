"""A small convolutional net for small images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from jaxlab.core import UsageError
from jaxlab.models.classifier import Classifier, ClassifierConfig, linear_head
from jaxlab.models.registry import features, register
from jaxlab.nn import Conv, max_pool, projection
from jaxlab.nn.activations import relu

STAGES = 3
"""Stages of a `SmallCNN`, each of which ends by halving height and width."""


@dataclasses.dataclass(frozen=True)
class SmallCNNConfig(ClassifierConfig):
    """Sizes of a `SmallCNN`; further fields are those of `ClassifierConfig`.

    Attributes:
      width: w; the convolutions have w, 2w and 2w channels, the hidden layer 4w units.
      depth: convolutions before each pooling.
    """

    width: int = 32

    def __post_init__(self):
        super().__post_init__()
        if min(self.image_shape[:2]) < 2**STAGES:
            raise UsageError(
                f"image_shape={self.image_shape} is too small to be halved {STAGES} times"
            )

    def build(self, rngs: nnx.Rngs) -> SmallCNN:
        """Makes the model."""
        return SmallCNN(self, rngs=rngs)


class ConvBlock(nnx.Module):
    """`relu(conv(x))`, 3 by 3 with a bias, and 2 by 2 max-pooling where asked."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        axes: tuple[str | None, ...],
        *,
        pool: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(in_dim, out_dim, 3, use_bias=True, axes=axes, dtype=dtype, rngs=rngs)
        self.pool = pool

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, in_dim] to [b, h, w, out_dim], halved by the pooling."""
        x_bhwc = relu(self.conv(x_bhwc))
        return max_pool(x_bhwc, 2) if self.pool else x_bhwc


class SmallCNN(Classifier):
    """Three stages of convolutions and pooling, one hidden layer, a linear head.

    With its defaults it has 188,810 parameters. The convolutions are `blocks/0`, `blocks/1`, ...

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> SmallCNN(SmallCNNConfig(), rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3))).shape
    (2, 10)
    """

    config_class = SmallCNNConfig

    def __init__(self, config: SmallCNNConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        h, w, in_dim = config.image_shape
        blocks: list[ConvBlock] = []
        axes: tuple[str | None, ...] = (None, None, None, "embed")
        for channels in (config.width, 2 * config.width, 2 * config.width):
            for i in range(config.depth):
                pool = i == config.depth - 1
                blocks.append(
                    ConvBlock(in_dim, channels, axes, pool=pool, dtype=self.dtype, rngs=rngs)
                )
                in_dim, axes = channels, (None, None, "embed", "mlp")
        self.blocks = nnx.List(blocks)
        flat = (h // 2**STAGES) * (w // 2**STAGES) * in_dim
        self.hidden = projection(
            flat,
            4 * config.width,
            ("embed", "mlp"),
            scale=2.0,
            use_bias=True,
            dtype=self.dtype,
            rngs=rngs,
        )
        self.head = linear_head(4 * config.width, config, rngs=rngs)

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """The hidden layer, [b, 4w]."""
        x_bhwc = self.input(images_bhwc)
        for block in self.blocks:
            x_bhwc = block(x_bhwc)
        return relu(self.hidden(x_bhwc.reshape(len(x_bhwc), -1)))


register(
    "small_cnn",
    SmallCNN,
    SmallCNNConfig(image_shape=(8, 8, 4), num_classes=8, width=8, dtype="float32"),
    features(8, 8, 4),
)
