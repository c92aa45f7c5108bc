"""MLP-Mixer (arXiv 2105.01601): transformer blocks in which a feed-forward layer mixes tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from jaxlab.models.classifier import Classifier, ClassifierConfig, linear_head
from jaxlab.models.registry import features, register
from jaxlab.models.vit import Patches, require_patches
from jaxlab.nn import Block, FeedForward
from jaxlab.nn.norm import layer_norm


@dataclasses.dataclass(frozen=True)
class MLPMixerConfig(ClassifierConfig):
    """Sizes of an `MLPMixer`; further fields are those of `ClassifierConfig`.

    Attributes:
      width: d, of the tokens.
      depth: blocks.
      token_dim: hidden units that mix tokens; None: width / 2.
      mlp_dim: hidden units that mix channels; None: 4 * width.
      patch: height and width of a patch, in pixels; divides those of the image.
    """

    width: int = 512
    depth: int = 8
    token_dim: int | None = None
    mlp_dim: int | None = None
    patch: int = 4

    def __post_init__(self):
        super().__post_init__()
        require_patches(self.image_shape, self.patch)

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_shape[0] // self.patch) * (self.image_shape[1] // self.patch)

    def build(self, rngs: nnx.Rngs) -> MLPMixer:
        """Makes the model."""
        return MLPMixer(self, rngs=rngs)


_LARGE: dict[str, Any] = {"image_shape": (224, 224, 3), "num_classes": 1000, "patch": 16}
SIZES: dict[str, MLPMixerConfig] = {
    "mixer_s16": MLPMixerConfig(**_LARGE),
    "mixer_b16": MLPMixerConfig(width=768, depth=12, **_LARGE),
    "mixer_s4": MLPMixerConfig(),
}
"""Table 1 of arXiv 2105.01601; patches of 4 for 32 by 32 images."""


class TokenMixer(nnx.Module):
    """A feed-forward layer across tokens, in place of attention; all channels share it."""

    def __init__(self, num_tokens: int, token_dim: int, *, dtype: Any, rngs: nnx.Rngs):
        self.mlp = FeedForward(
            num_tokens, token_dim, activation="gelu", use_bias=True, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x_btd: jax.Array, segment: None = None, carry: Any = None
    ) -> tuple[jax.Array, Any]:
        """[b, t, d] to [b, t, d], and the carry as it was."""
        return self.mlp(x_btd.swapaxes(1, 2)).swapaxes(1, 2), carry


class MLPMixer(Classifier):
    """Patches, pre-norm `blocks/0`, `blocks/1`, ..., a norm, the mean of tokens, a linear head.

    The layer that mixes tokens is at `blocks/*/attention/mlp`: every block calls its mixer so.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = MLPMixer(MLPMixerConfig(width=32, depth=2), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 32, 32, 3))).shape
    (2, 10)
    """

    config_class = MLPMixerConfig

    def __init__(self, config: MLPMixerConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        d, how = config.width, {"dtype": self.dtype, "rngs": rngs}
        self.patches = Patches(config.image_shape, config.patch, d, **how)
        self.blocks = nnx.List(
            [
                Block(
                    d,
                    TokenMixer(config.num_patches, config.token_dim or max(d // 2, 1), **how),
                    FeedForward(
                        d, config.mlp_dim or 4 * d, activation="gelu", use_bias=True, **how
                    ),
                    norm=layer_norm,
                    **how,
                )
                for _ in range(config.depth)
            ]
        )
        self.final_norm = layer_norm(d, **how)
        self.head = linear_head(d, config, rngs=rngs)

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """The mean of the normalised tokens, [b, d]."""
        x_btd = self.patches(self.input(images_bhwc))
        for block in self.blocks:
            x_btd, _ = block(x_btd)
        return self.final_norm(x_btd).mean(axis=1)


register(
    "mlp_mixer",
    MLPMixer,
    MLPMixerConfig(
        image_shape=(8, 8, 4), num_classes=8, width=32, depth=1, patch=2, dtype="float32"
    ),
    features(8, 8, 4),
)
