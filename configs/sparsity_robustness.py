"""Configs of `experiments/sparsity_robustness.py`: sparsity and robustness, arXiv 2206.10915.

The paper's abstract alone is public in words; nets, densities, budgets and seeds of its runs are
not, so `paper` is the usual CIFAR-10 setting. Costs are of an x86-64 machine with AVX-512, with
compilation; where none is told, none was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlab.core import MeshConfig, UsageError
from jaxlab.data import ImageSet, channel_statistics, corruptions, open_images
from jaxlab.evals import Stress
from jaxlab.models import classifier_config
from jaxlab.train import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images are trained and tested on.

    Attributes:
      train, test: such as `digits/train`, `tfds:mnist/test`, `images:FOLDER`; see
        `jaxlab.data.open_images`.
      data_dir: the folder of the tensorflow_datasets data sets.
      train_images, test_images: so many first ones; None: all.
      augment: crops padded by 4 pixels, and flips.
      normalise: whether models take off the mean of each channel and divide by its deviation.
      image_shape, num_classes: of the images, so that a run is planned without them; None: ask
        them. A run refuses images of others.

    Raises:
      UsageError: one of both without the other.
    """

    train: str = "digits/train"
    test: str = "digits/test"
    data_dir: str | None = None
    train_images: int | None = None
    test_images: int | None = None
    augment: bool = False
    normalise: bool = False
    image_shape: tuple[int, ...] | None = None
    num_classes: int | None = None

    def __post_init__(self):
        if (self.image_shape is None) != (self.num_classes is None):
            raise UsageError(
                f"image_shape={self.image_shape} and num_classes={self.num_classes}; give both, or "
                "none"
            )

    def blank(self) -> ImageSet | None:
        """Two images of the shape and classes that are told, to plan by; None where none are."""
        if self.image_shape is None:
            return None
        levels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
        images = np.broadcast_to(levels, (2, *self.image_shape))
        return ImageSet(images, [0, 0], num_classes=self.num_classes, name=f"like {self.train}")

    def open(self) -> tuple[ImageSet, ImageSet]:
        """Training and test images.

        Raises:
          UsageError: images that cannot be opened, or of another shape or number of classes than
            told.
        """
        found = []
        for spec, count in ((self.train, self.train_images), (self.test, self.test_images)):
            images = open_images(spec, data_dir=self.data_dir)
            told = self.image_shape, self.num_classes
            seen = images.image_shape, images.num_classes
            if self.image_shape is not None and told != seen:
                raise UsageError(
                    f"{spec!r} has images of {seen[0]} in {seen[1]} classes; image_shape and "
                    f"num_classes say {told[0]} and {told[1]}: set them to those, or to none"
                )
            found.append(images if count is None else images.first(min(count, len(images))))
        return found[0], found[1]


@dataclasses.dataclass(frozen=True)
class Config:
    """The study: one dense net, and sparse ones of its capacity or of less.

    Attributes:
      classifier: a name of `models.CLASSIFIERS`.
      width, depth: of the dense net, whose number of weights is the capacity.
      densities: of the sparse nets of this capacity; their widths follow.
      rules: how their weights are shared out over the layers, see `sparsity.densities`.
      falling_width: width of a net that keeps its size and loses capacity; None: no such nets.
      falling_densities: of those nets, beside the dense one.
      depths: of nets of `depth_width` with the capacity of the dense net; empty: none.
      depth_width: see there.
      with_skips: whether they are trained with layer norm and skip connections too (`mlp`).
      num_seeds: trainings of each net, with `train.seed` and the numbers after it.
      claimed: density up to which sparse nets are said to keep what the dense one can; the nearest
        of `densities` is judged.
      margin: accuracy within which nets count as equal, in [0, 1].
      data, stress, train: for all nets.

    Raises:
      UsageError: parts that do not fit each other.
    """

    classifier: str = "mlp"
    width: int = 32
    depth: int = 2
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    rules: tuple[str, ...] = ("erk",)
    falling_width: int | None = 256
    falling_densities: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.005)
    depths: tuple[int, ...] = (2, 3, 4, 6)
    depth_width: int = 128
    with_skips: bool = True
    num_seeds: int = 5
    claimed: float = 0.05
    margin: float = 0.01
    data: DataConfig = DataConfig()
    stress: Stress = Stress()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        for name in ("densities", "falling_densities"):
            for density in getattr(self, name):
                if not 0 < density < 1:
                    raise UsageError(f"{name} holds {density}; expected shares above 0, below 1")
        if not self.densities or not self.rules:
            raise UsageError("densities and rules are empty; the study needs one of each")
        if self.with_skips and self.depths and self.classifier != "mlp":
            raise UsageError(
                f"with_skips=True is for classifier='mlp', got {self.classifier!r}, whose norms "
                "and skips are its own; set with_skips=False"
            )
        if self.num_seeds < 1:
            raise UsageError(f"num_seeds={self.num_seeds}; expected 1 or more")

    def model(self, images: ImageSet, **changes: Any) -> Any:
        """The config of a net for these images."""
        mean, std = channel_statistics(images) if self.data.normalise else ((0.0,), (1.0,))
        return classifier_config(
            self.classifier,
            image_shape=images.image_shape,
            num_classes=images.num_classes,
            mean=mean,
            std=std,
            **{"width": self.width, "depth": self.depth} | changes,
        )


def tiny() -> Config:
    """Handwritten digits, 8 by 8, that come with the package: 14 minutes of one core."""
    # The nets are those of `mnist`, on inputs of 8 by 8: a dense net of 32 by 32 units has 3,392
    # weights; at density 0.01 its capacity is spread over a net about 17 times as wide.
    return Config(
        data=DataConfig(),
        train=TrainConfig(
            steps=600,
            batch_size=128,
            log_every=50,
            save_every=600,
            keep_last=1,
            optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine"),
        ),
    )


def mnist() -> Config:
    """MNIST from a prepared tensorflow_datasets set: 18 minutes of one core."""
    # 26,432 weights in a dense net of 32 by 32 units; the densities give widths near 64 to 1,024.
    return dataclasses.replace(
        tiny(),
        densities=(0.48, 0.22, 0.098, 0.039, 0.0145),
        rules=("erk", "level", "uniform"),
        num_seeds=3,
        claimed=0.039,
        data=DataConfig(
            train="tfds:mnist/train",
            test="tfds:mnist/test",
            image_shape=(28, 28, 1),
            num_classes=10,
        ),
        train=dataclasses.replace(
            tiny().train,
            steps=640,
            batch_size=250,
            save_every=640,
            optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant"),
        ),
    )


def cifar10() -> Config:
    """CIFAR-10 with the small convolutional net, a few epochs."""
    return dataclasses.replace(
        tiny(),
        classifier="small_cnn",
        width=8,
        depth=1,
        densities=(0.25, 0.06),
        falling_width=32,
        falling_densities=(0.1, 0.02),
        depths=(1, 2),
        depth_width=16,
        with_skips=False,
        num_seeds=3,
        claimed=0.06,
        data=DataConfig(
            train="tfds:cifar10/train",
            test="tfds:cifar10/test",
            train_images=25_000,
            test_images=2_000,
            normalise=True,
            image_shape=(32, 32, 3),
            num_classes=10,
        ),
        stress=Stress(
            noise=0.1,
            corruptions=("contrast/4", "gaussian_blur/5", "fog/4"),
            eps=2 / 255,
            relative=0.2,
            rms=0.2,
        ),
        train=dataclasses.replace(
            tiny().train,
            steps=800,
            batch_size=128,
            save_every=800,
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=0.05, warmup_steps=50, weight_decay=5e-4
            ),
        ),
    )


def smoke() -> Config:
    """A few steps of everything, to see that it runs: under a minute. No claim is to hold."""
    base = tiny()
    return dataclasses.replace(
        base,
        width=4,
        densities=(0.3,),
        falling_width=8,
        falling_densities=(0.3,),
        depths=(2,),
        depth_width=8,
        num_seeds=1,
        claimed=0.3,
        data=dataclasses.replace(base.data, train_images=64, test_images=32),
        stress=Stress(steps=2, draws=2),
        train=dataclasses.replace(base.train, steps=4, batch_size=16, log_every=2, save_every=4),
    )


def paper() -> Config:
    """ResNet-18 on CIFAR-10 with all nineteen corruptions, 200 epochs: for accelerators."""
    # The recipe is the field's usual one for this net (about 95 percent when dense); see the
    # docstring of this file for what is known of the paper's.
    severe = tuple(
        f"{name}/{severity}"
        for name in corruptions.EVALUATED_NAMES
        for severity in corruptions.SEVERITIES
    )
    return dataclasses.replace(
        tiny(),
        classifier="resnet18",
        width=16,
        depth=1,
        densities=(0.5, 0.25, 0.1, 0.05, 0.02, 0.01),
        rules=("erk", "uniform"),
        falling_width=64,
        falling_densities=(0.5, 0.25, 0.1, 0.05, 0.02, 0.01),
        depths=(1, 2, 3),
        depth_width=32,
        with_skips=False,
        num_seeds=3,
        data=DataConfig(
            train="tfds:cifar10/train",
            test="tfds:cifar10/test",
            augment=True,
            normalise=True,
            image_shape=(32, 32, 3),
            num_classes=10,
        ),
        stress=Stress(noise=0.1, corruptions=severe, eps=2 / 255, relative=0.2, rms=0.2),
        train=TrainConfig(
            steps=78_125,
            batch_size=128,
            log_every=100,
            save_every=5_000,
            mesh=MeshConfig(data=-1),
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=0.1, weight_decay=5e-4, momentum=0.9
            ),
        ),
    )


VARIANTS: dict[str, Callable[[], Config]] = {
    "smoke": smoke,
    "tiny": tiny,
    "mnist": mnist,
    "cifar10": cifar10,
    "paper": paper,
}
DEFAULT = "tiny"
