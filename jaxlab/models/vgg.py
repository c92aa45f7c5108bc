"""VGG (arXiv 1409.1556) with batch normalisation and one linear layer, as is usual for CIFAR."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
from flax import nnx

from jaxlab.core import UsageError
from jaxlab.models.classifier import Classifier, ClassifierConfig, linear_head
from jaxlab.models.registry import features, register
from jaxlab.nn import NORMS, Conv, max_pool
from jaxlab.nn.activations import relu


@dataclasses.dataclass(frozen=True)
class VGGConfig(ClassifierConfig):
    """Sizes of a `VGG`; further fields are those of `ClassifierConfig`.

    Attributes:
      width: channels of the first stage; later ones have 2, 4, 8, 8 times as many.
      depth: multiplies the convolutions of each stage.
      stages: convolutions of each stage, which ends with 2 by 2 max-pooling.
      norm: behind each convolution, a name of `nn.NORMS`, or 'none'.
    """

    width: int = 64
    stages: tuple[int, ...] = (2, 2, 3, 3, 3)
    norm: Literal["none", "batch", "layer", "group"] = "batch"

    def __post_init__(self):
        super().__post_init__()
        if not self.stages or any(convs < 1 for convs in self.stages):
            raise UsageError(f"stages={self.stages}; expected one stage or more, of 1 or more each")
        if min(self.image_shape[:2]) < 2 ** len(self.stages):
            raise UsageError(
                f"image_shape={self.image_shape} is too small to be halved {len(self.stages)} times"
            )

    def build(self, rngs: nnx.Rngs) -> VGG:
        """Makes the model."""
        return VGG(self, rngs=rngs)


SIZES: dict[str, VGGConfig] = {
    "vgg11": VGGConfig(stages=(1, 1, 2, 2, 2)),
    "vgg13": VGGConfig(stages=(2, 2, 2, 2, 2)),
    "vgg16": VGGConfig(),
    "vgg19": VGGConfig(stages=(2, 2, 4, 4, 4)),
}
"""Table 1 of arXiv 1409.1556 (A, B, D, E), with one linear layer in place of three."""


class VGGBlock(nnx.Module):
    """`relu(norm(conv(x)))`, 3 by 3, and 2 by 2 max-pooling where asked."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        axes: tuple,
        config: VGGConfig,
        *,
        pool: bool,
        rngs: nnx.Rngs,
    ):
        how: dict[str, Any] = {"dtype": config.compute_dtype, "rngs": rngs}
        self.conv = Conv(in_dim, out_dim, 3, use_bias=True, axes=axes, **how)
        self.norm = NORMS[config.norm](out_dim, **how) if config.norm != "none" else None
        self.pool = pool

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, in_dim] to [b, h, w, out_dim], halved by the pooling."""
        x_bhwc = self.conv(x_bhwc)
        x_bhwc = relu(x_bhwc if self.norm is None else self.norm(x_bhwc))
        return max_pool(x_bhwc, 2) if self.pool else x_bhwc


class VGG(Classifier):
    """Stages of convolutions, pooling, the mean over positions, a linear head.

    The convolutions are `blocks/0`, `blocks/1`, ...
    """

    config_class = VGGConfig

    def __init__(self, config: VGGConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        in_dim = config.image_shape[-1]
        axes: tuple[str | None, ...] = (None, None, None, "embed")
        blocks = []
        for stage, convs in enumerate(config.stages):
            channels = config.width * min(2**stage, 8)
            for i in range(convs * config.depth):
                pool = i == convs * config.depth - 1
                blocks.append(VGGBlock(in_dim, channels, axes, config, pool=pool, rngs=rngs))
                in_dim, axes = channels, (None, None, "embed", "mlp")
        self.blocks = nnx.List(blocks)
        self.head = linear_head(in_dim, config, rngs=rngs)

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """Means over the positions that the last pooling leaves, [b, d]."""
        x_bhwc = self.input(images_bhwc)
        for block in self.blocks:
            x_bhwc = block(x_bhwc)
        return x_bhwc.mean(axis=(1, 2))


register(
    "vgg",
    VGG,
    VGGConfig(image_shape=(8, 8, 4), num_classes=8, width=8, stages=(1, 1, 1), dtype="float32"),
    features(8, 8, 4),
)
