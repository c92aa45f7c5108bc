"""A multi-layer perceptron on images or features."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core import UsageError
from jaxlab.models.classifier import Classifier, ClassifierConfig, linear_head
from jaxlab.models.registry import features, register
from jaxlab.nn import NORMS, projection
from jaxlab.nn.activations import relu


@dataclasses.dataclass(frozen=True)
class MLPConfig(ClassifierConfig):
    """Sizes of an `MLP`; further fields are those of `ClassifierConfig`.

    Attributes:
      width: of every hidden layer.
      depth: hidden layers.
      widths: of each hidden layer, in place of `width` and `depth`.
      in_dim: numbers in each input, of any shape; None: images of `image_shape`.
      norm: before each activation, a name of `nn.NORMS`, or 'none'.
      residual: each hidden layer but the first is added to its input, which it reads through norm
        and activation, as in 1603.05027; for deep models.
    """

    image_shape: tuple[int, ...] = (28, 28, 1)
    width: int = 512
    depth: int = 2
    widths: tuple[int, ...] | None = None
    in_dim: int | None = None
    norm: Literal["none", "batch", "layer", "group"] = "none"
    residual: bool = False

    def __post_init__(self):
        super().__post_init__()
        if any(width < 1 for width in self.hidden_widths) or not self.hidden_widths:
            raise UsageError(
                f"widths={self.widths}; expected one hidden layer or more, of 1 or more units"
            )
        if self.in_dim is not None and (len(self.mean), len(self.std)) != (1, 1):
            raise UsageError(
                f"mean={self.mean} and std={self.std} are by channel, and in_dim={self.in_dim} has "
                "none; give one of each"
            )
        if self.residual and len(set(self.hidden_widths)) > 1:
            raise UsageError(f"widths={self.widths} differ; residual=True adds layers of one width")

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """The width of each hidden layer."""
        return (self.width,) * self.depth if self.widths is None else self.widths

    def build(self, rngs: nnx.Rngs) -> MLP:
        """Makes the model."""
        return MLP(self, rngs=rngs)


class DenseBlock(nnx.Module):
    """`relu(norm(W x + b))`, or `x + W relu(norm(x)) + b` as a residual.

    Args:
      in_dim, out_dim: of W.
      config: its norm and dtype.
      residual: see above.
    """

    def __init__(
        self, in_dim: int, out_dim: int, config: MLPConfig, *, residual: bool, rngs: nnx.Rngs
    ):
        dtype = config.compute_dtype
        self.dense = projection(
            in_dim, out_dim, ("embed", "mlp"), scale=2.0, use_bias=True, dtype=dtype, rngs=rngs
        )
        norm = NORMS.get(config.norm)
        width = in_dim if residual else out_dim
        self.norm = None if norm is None else norm(width, dtype=dtype, rngs=rngs)
        self.residual = residual

    def __call__(self, x_bd: jax.Array) -> jax.Array:
        """[b, in_dim] to [b, out_dim]."""
        if self.residual:
            return x_bd + self.dense(self._activate(x_bd))
        return self._activate(self.dense(x_bd))

    def _activate(self, x_bd: jax.Array) -> jax.Array:
        return relu(x_bd if self.norm is None else self.norm(x_bd))


class MLP(Classifier):
    """Hidden layers `blocks/0`, `blocks/1`, ... with ReLU, and a linear `head`.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = MLP(MLPConfig(in_dim=784, widths=(512, 512)), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 28, 28, 1))).shape
    (2, 10)
    """

    config_class = MLPConfig
    if TYPE_CHECKING:
        config: MLPConfig

    def __init__(self, config: MLPConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        widths = config.hidden_widths
        dims = (config.in_dim or math.prod(config.image_shape), *widths)
        self.blocks = nnx.List(
            [
                DenseBlock(
                    dims[i], dims[i + 1], config, residual=config.residual and i > 0, rngs=rngs
                )
                for i in range(len(widths))
            ]
        )
        self.head = linear_head(widths[-1], config, rngs=rngs)

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """The last hidden layer, [b, d]."""
        x_bd = self._input(images_bhwc)
        for block in self.blocks:
            x_bd = block(x_bd)
        return relu(x_bd) if self.config.residual else x_bd

    def _input(self, rows: jax.Array) -> jax.Array:
        config = self.config
        if config.in_dim is None:
            return self.input(rows).reshape(len(rows), -1)
        floats = jnp.issubdtype(rows.dtype, jnp.floating)
        if math.prod(rows.shape[1:]) != config.in_dim or not floats:
            raise UsageError(
                f"inputs {rows.dtype}{list(rows.shape)}; the model takes rows of in_dim="
                f"{config.in_dim} floats"
            )
        return ((rows.reshape(len(rows), -1) - config.mean[0]) / config.std[0]).astype(self.dtype)


_TINY = MLPConfig(image_shape=(8, 8, 1), num_classes=8, width=32, dtype="float32")
register("mlp/plain", MLP, _TINY, features(8, 8, 1))
register(
    "mlp/residual",
    MLP,
    dataclasses.replace(_TINY, depth=3, norm="batch", residual=True),
    features(8, 8, 1),
)
