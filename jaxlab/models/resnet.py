"""Residual networks (arXiv 1512.03385), wide (1605.07146) and without norms (Fixup, 1901.09321)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError
from jaxlab.models.classifier import Classifier, ClassifierConfig, linear_head
from jaxlab.models.registry import features, register
from jaxlab.nn import NORMS, Conv, max_pool
from jaxlab.nn.activations import relu

EXPANSION = {"basic": 1, "preactivation": 1, "bottleneck": 4}
"""Output channels of a block over those inside it."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ClassifierConfig):
    """Sizes and parts of a `ResNet`; further fields are those of `ClassifierConfig`.

    Attributes:
      width: channels inside the blocks of the first stage; each later stage has twice as many.
      depth: multiplies the blocks of each stage.
      stages: blocks of each stage; all but the first stage begin by halving height and width.
      block: 'basic' (two 3x3 convolutions), 'bottleneck' (1x1, 3x3 with the stride, 1x1 to four
        times the channels), 'preactivation' (basic, norm and ReLU first, as in 1603.05027).
      norm: behind each convolution, a name of `nn.NORMS`; or 'fixup': none, but scalar biases and
        multipliers, and a start that is scaled for depth (basic and bottleneck).
      shortcut: where a block changes its shape: a '1x1' or '3x3' convolution with the stride and a
        norm; or 'pad': every second position, channels padded by zeros (option A, no parameters).
      stem: 'small' (3x3), or 'large' (7x7 with stride 2 and 3x3 max-pooling, for 224 by 224).
      stem_width: channels of the stem; None: `width`.
    """

    width: int = 16
    depth: int = 3
    stages: tuple[int, ...] = (1, 1, 1)
    block: Literal["basic", "bottleneck", "preactivation"] = "basic"
    norm: Literal["batch", "layer", "group", "fixup"] = "batch"
    shortcut: Literal["1x1", "3x3", "pad"] = "1x1"
    stem: Literal["small", "large"] = "small"
    stem_width: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.stages or any(blocks < 1 for blocks in self.stages):
            raise UsageError(f"stages={self.stages}; expected one stage or more, of 1 or more each")
        if self.norm == "fixup" and self.block == "preactivation":
            raise UsageError("norm='fixup' has no preactivation block; use 'basic' or 'bottleneck'")

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.stages) * self.depth

    def build(self, rngs: nnx.Rngs) -> ResNet:
        """Makes the model."""
        return ResNet(self, rngs=rngs)


_LARGE: dict[str, Any] = {
    "image_shape": (224, 224, 3),
    "num_classes": 1000,
    "width": 64,
    "depth": 1,
    "stem": "large",
}
SIZES: dict[str, ResNetConfig] = {
    "resnet20": ResNetConfig(depth=3),
    "resnet32": ResNetConfig(depth=5),
    "resnet56": ResNetConfig(depth=9),
    "resnet18": ResNetConfig(width=64, depth=1, stages=(2, 2, 2, 2)),
    "resnet34": ResNetConfig(width=64, depth=1, stages=(3, 4, 6, 3)),
    "resnet18_large": ResNetConfig(stages=(2, 2, 2, 2), **_LARGE),
    "resnet34_large": ResNetConfig(stages=(3, 4, 6, 3), **_LARGE),
    "resnet50_large": ResNetConfig(stages=(3, 4, 6, 3), block="bottleneck", **_LARGE),
    "wrn28_10": ResNetConfig(width=160, depth=4, block="preactivation", stem_width=16),
}
"""ResNets for 32 by 32 images (20, 32, 56: arXiv 1512.03385, section 4.2, with 1x1 shortcuts) and
for 224 by 224 (`_large`: its table 1); 18 and 34 with a small stem; WRN-28-10 of 1605.07146."""


class ResidualBlock(nnx.Module):
    """`relu(shortcut(x) + branch(x))`, or `shortcut(a) + branch(a)` of `a = relu(norm(x))`.

    The branch is convolutions, each with a norm: behind it, or (preactivation) before it; between
    them ReLU. Where a preactivation block keeps its shape, its shortcut is x itself.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs):
        how: dict[str, Any] = {"dtype": config.compute_dtype, "rngs": rngs}
        norm = NORMS[config.norm]
        layout = branch_layout(in_dim, dim, stride, config.block)
        self.convs = nnx.List([conv_of(*conv, **how) for conv in layout])
        self.preactivation = config.block == "preactivation"
        widths = [conv[0] if self.preactivation else conv[1] for conv in layout]
        self.norms = nnx.List([norm(width, **how) for width in widths])
        self.shortcut = Shortcut(in_dim, layout[-1][1], stride, config, rngs=rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, in] to [b, h / stride, w / stride, out]."""
        if self.preactivation:
            return self._preactivated(x_bhwc)
        y_bhwc = x_bhwc
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y_bhwc = norm(conv(relu(y_bhwc) if i else y_bhwc))
        return relu(self.shortcut(x_bhwc) + y_bhwc)

    def _preactivated(self, x_bhwc: jax.Array) -> jax.Array:
        first, *others = zip(self.convs, self.norms, strict=True)
        a_bhwc = relu(first[1](x_bhwc))
        y_bhwc = first[0](a_bhwc)
        for conv, norm in others:
            y_bhwc = conv(relu(norm(y_bhwc)))
        return self.shortcut(a_bhwc if self.shortcut.changes else x_bhwc) + y_bhwc


class FixupBlock(nnx.Module):
    """A residual block without norms (arXiv 1901.09321).

    There is a scalar bias before each convolution and each ReLU, and a scalar multiplier and a bias
    after the last convolution, which starts at zero; the others start with their usual deviation
    times `L^(-1 / (2m - 2))`, for L blocks of m convolutions.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs):
        how: dict[str, Any] = {"dtype": config.compute_dtype, "rngs": rngs}
        layout = branch_layout(in_dim, dim, stride, config.block)
        m = len(layout)
        scale = 2.0 * config.num_blocks ** (-2 / (2 * m - 2))  # of the variance
        inits = [jax.nn.initializers.variance_scaling(scale, "fan_in", "normal")] * (m - 1)
        inits.append(jax.nn.initializers.zeros)
        self.convs = nnx.List(
            [
                conv_of(*conv, kernel_init=init, **how)
                for conv, init in zip(layout, inits, strict=True)
            ]
        )
        self.biases = nnx.Param(jnp.zeros((2 * m,)), axes=(None,))
        self.multiplier = nnx.Param(jnp.ones((1,)), axes=(None,))
        self.shortcut = Shortcut(in_dim, layout[-1][1], stride, config, rngs=rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, in] to [b, h / stride, w / stride, out]."""
        bias, multiplier = (p[...].astype(x_bhwc.dtype) for p in (self.biases, self.multiplier))
        shifted_bhwc = y_bhwc = x_bhwc + bias[0]
        for i, conv in enumerate(self.convs):
            if i:
                y_bhwc = relu(y_bhwc + bias[2 * i - 1]) + bias[2 * i]
            y_bhwc = conv(y_bhwc)
        kept = self.shortcut(shifted_bhwc) if self.shortcut.changes else x_bhwc
        return relu(kept + y_bhwc * multiplier[0] + bias[-1])


class Shortcut(nnx.Module):
    """The identity, or what brings x to the shape of the branch; see `ResNetConfig.shortcut`."""

    def __init__(
        self, in_dim: int, out_dim: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs
    ):
        how: dict[str, Any] = {"dtype": config.compute_dtype, "rngs": rngs}
        self.changes = in_dim != out_dim or stride > 1
        self.stride, self.padding = stride, out_dim - in_dim
        learned = self.changes and config.shortcut != "pad"
        normed = learned and config.norm != "fixup" and config.block != "preactivation"
        size = 3 if config.shortcut == "3x3" else 1
        self.conv = conv_of(in_dim, out_dim, size, stride, **how) if learned else None
        self.norm = NORMS[config.norm](out_dim, **how) if normed else None

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, in] to [b, h / stride, w / stride, out]."""
        if not self.changes:
            return x_bhwc
        if self.conv is None:
            x_bhwc = x_bhwc[:, :: self.stride, :: self.stride]
            return jnp.pad(x_bhwc, ((0, 0), (0, 0), (0, 0), (0, self.padding)))
        x_bhwc = self.conv(x_bhwc)
        return x_bhwc if self.norm is None else self.norm(x_bhwc)


class ResNet(Classifier):
    """A stem, residual `blocks/0`, `blocks/1`, ... of all stages, the mean, a linear head.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> ResNet(SIZES["resnet20"], rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3))).shape
    (2, 10)
    """

    config_class = ResNetConfig
    if TYPE_CHECKING:
        config: ResNetConfig

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        how: dict[str, Any] = {"dtype": self.dtype, "rngs": rngs}
        fixup, preactivation = config.norm == "fixup", config.block == "preactivation"
        stem_width = config.stem_width or config.width
        size, stride = (3, 1) if config.stem == "small" else (7, 2)
        self.stem = conv_of(
            config.image_shape[-1],
            stem_width,
            size,
            stride,
            axes=(None, None, None, "embed"),
            **how,
        )
        normed = not fixup and not preactivation
        self.stem_norm = NORMS[config.norm](stem_width, **how) if normed else None
        make = FixupBlock if fixup else ResidualBlock
        blocks, in_dim = [], stem_width
        for stage, count in enumerate(config.stages):
            dim = config.width * 2**stage
            for i in range(count * config.depth):
                blocks.append(make(in_dim, dim, 2 if stage and not i else 1, config, rngs=rngs))
                in_dim = dim * EXPANSION[config.block]
        self.blocks = nnx.List(blocks)
        self.final_norm = NORMS[config.norm](in_dim, **how) if preactivation else None
        self.stem_bias = nnx.Param(jnp.zeros((1,)), axes=(None,)) if fixup else None
        self.head_bias = nnx.Param(jnp.zeros((1,)), axes=(None,)) if fixup else None
        self.head = linear_head(in_dim, config, rngs=rngs)
        if fixup:
            self.head.kernel.set_value(jnp.zeros_like(self.head.kernel.get_value()))

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """Means of the last block over all positions, [b, d]."""
        x_bhwc = self.stem(self.input(images_bhwc))
        if self.stem_bias is not None:
            x_bhwc = relu(x_bhwc + self.stem_bias[0].astype(x_bhwc.dtype))
        elif self.stem_norm is not None:
            x_bhwc = relu(self.stem_norm(x_bhwc))
        if self.config.stem == "large":
            x_bhwc = max_pool(x_bhwc, 3, 2, padding=1)
        for block in self.blocks:
            x_bhwc = block(x_bhwc)
        if self.final_norm is not None:
            x_bhwc = relu(self.final_norm(x_bhwc))
        x_bd = x_bhwc.mean(axis=(1, 2))
        return x_bd if self.head_bias is None else x_bd + self.head_bias[0].astype(x_bd.dtype)


def branch_layout(
    in_dim: int, dim: int, stride: int, block: str
) -> list[tuple[int, int, int, int]]:
    """(in channels, out channels, kernel size, stride) of each convolution of a block's branch."""
    if block == "bottleneck":
        return [(in_dim, dim, 1, 1), (dim, dim, 3, stride), (dim, 4 * dim, 1, 1)]
    return [(in_dim, dim, 3, stride), (dim, dim, 3, 1)]


def conv_of(
    in_dim: int,
    out_dim: int,
    size: int,
    stride: int,
    *,
    axes: tuple[str | None, ...] = (None, None, "embed", "mlp"),
    **how: Any,
) -> Conv:
    """A square convolution without bias that pads `size // 2` on every side."""
    return Conv(in_dim, out_dim, size, stride=stride, padding=size // 2, axes=axes, **how)


_TINY = ResNetConfig(
    image_shape=(8, 8, 4), num_classes=8, width=8, depth=1, stages=(1, 1), dtype="float32"
)
_REPLACE: dict[str, dict[str, Any]] = {
    "batch": {},
    "bottleneck": {"block": "bottleneck", "norm": "group", "stem": "large", "width": 16},
    "preactivation": {"block": "preactivation", "norm": "layer", "shortcut": "3x3"},
    "fixup": {"norm": "fixup", "shortcut": "pad"},
}
for _name, _fields in _REPLACE.items():
    register(f"resnet/{_name}", ResNet, dataclasses.replace(_TINY, **_fields), features(8, 8, 4))
