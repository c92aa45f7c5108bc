"""Vision Transformers (arXiv 2010.11929): transformer blocks on patches of an image."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError, constrain
from jaxlab.models.classifier import Classifier, ClassifierConfig, linear_head
from jaxlab.models.registry import features, register
from jaxlab.nn import Attention, Block, FeedForward, projection
from jaxlab.nn.attention import split_width
from jaxlab.nn.norm import layer_norm


def require_patches(image_shape: tuple[int, ...], patch: int) -> None:
    """Refuses a patch that does not divide the height and width of an image.

    Raises:
      UsageError: such a patch.
    """
    if patch < 1 or image_shape[0] % patch or image_shape[1] % patch:
        raise UsageError(f"patch={patch} does not divide image_shape={image_shape}")


@dataclasses.dataclass(frozen=True)
class ViTConfig(ClassifierConfig):
    """Sizes of a `ViT`; further fields are those of `ClassifierConfig`.

    Attributes:
      width: d, of the tokens; a multiple of `num_heads`.
      depth: blocks.
      num_heads: of the attention.
      mlp_dim: units of the hidden layer; None: 4 * width.
      patch: height and width of a patch, in pixels; divides those of the image.
      pool: the head reads a 'class' token put before the patches, or their 'mean'.
    """

    width: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_dim: int | None = None
    patch: int = 4
    pool: Literal["class", "mean"] = "class"

    def __post_init__(self):
        super().__post_init__()
        split_width(self.width, self.num_heads)
        require_patches(self.image_shape, self.patch)

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_shape[0] // self.patch) * (self.image_shape[1] // self.patch)

    def build(self, rngs: nnx.Rngs) -> ViT:
        """Makes the model."""
        return ViT(self, rngs=rngs)


_LARGE: dict[str, Any] = {"image_shape": (224, 224, 3), "num_classes": 1000, "patch": 16}
SIZES: dict[str, ViTConfig] = {
    "vit_ti16": ViTConfig(**_LARGE),
    "vit_s16": ViTConfig(width=384, num_heads=6, **_LARGE),
    "vit_b16": ViTConfig(width=768, num_heads=12, **_LARGE),
    "vit_ti4": ViTConfig(),
    "vit_s4": ViTConfig(width=384, num_heads=6),
    "vit_b4": ViTConfig(width=768, num_heads=12),
}
"""B of arXiv 2010.11929, table 1; S and Ti of 2106.10270, table 1; patches of 16 for 224 by 224
images, patches of 4 for 32 by 32."""


class Patches(nnx.Module):
    """Patches that do not overlap, each projected to a token: a convolution with equal stride.

    Args:
      shape: (h, w, c) of an image.
      patch: p, which divides h and w.
      width: d.
    """

    def __init__(
        self, shape: tuple[int, ...], patch: int, width: int, *, dtype: Any, rngs: nnx.Rngs
    ):
        self.patch = patch
        self.projection = projection(
            (patch, patch, shape[-1]),
            width,
            (None, None, None, "embed"),
            use_bias=True,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, c] to tokens [b, h / p * w / p, d], row by row."""
        b, h, w, c = x_bhwc.shape
        p = self.patch
        x = x_bhwc.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
        return self.projection(x.reshape(b, -1, p, p, c))


class ViT(Classifier):
    """Patches, learned positions, pre-norm `blocks/0`, `blocks/1`, ..., a norm, a linear head.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> config = ViTConfig(width=32, depth=2, num_heads=2)
    >>> ViT(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3))).shape
    (2, 10)
    """

    config_class = ViTConfig

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        d, dtype = config.width, self.dtype
        self.patches = Patches(config.image_shape, config.patch, d, dtype=dtype, rngs=rngs)
        extra = int(config.pool == "class")
        self.class_token = nnx.Param(jnp.zeros((d,)), axes=("embed",)) if extra else None
        positions = 0.02 * jax.random.normal(rngs.params(), (config.num_patches + extra, d))
        self.positions = nnx.Param(positions, axes=(None, "embed"))
        self.blocks = nnx.List(
            [
                Block(
                    d,
                    Attention(
                        d, config.num_heads, causal=False, use_bias=True, dtype=dtype, rngs=rngs
                    ),
                    FeedForward(
                        d,
                        config.mlp_dim or 4 * d,
                        activation="gelu",
                        use_bias=True,
                        dtype=dtype,
                        rngs=rngs,
                    ),
                    norm=layer_norm,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(config.depth)
            ]
        )
        self.final_norm = layer_norm(d, dtype=dtype, rngs=rngs)
        self.head = linear_head(d, config, rngs=rngs)

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """The class token, or the mean of the patches, normalised, [b, d]."""
        x_btd = self.patches(self.input(images_bhwc))
        if self.class_token is not None:
            token = jnp.broadcast_to(
                self.class_token[...].astype(self.dtype), (len(x_btd), 1, x_btd.shape[-1])
            )
            x_btd = jnp.concatenate([token, x_btd], axis=1)
        positions_1td = self.positions[...].astype(self.dtype)[None]
        x_btd = constrain(x_btd + positions_1td, "batch", None, None)
        for block in self.blocks:
            x_btd, _ = block(x_btd)
        x_btd = self.final_norm(x_btd)
        return x_btd[:, 0] if self.class_token is not None else x_btd.mean(axis=1)


_TINY = ViTConfig(
    image_shape=(8, 8, 4),
    num_classes=8,
    width=32,
    depth=1,
    num_heads=2,
    patch=2,
    dtype="float32",
)
register("vit", ViT, dataclasses.replace(_TINY, pool="mean"), features(8, 8, 4))
register("vit/class_token", ViT, _TINY, features(8, 8, 4))
