"""Configs of `experiments/sparsity_robustness.py`: sparsity and robustness, arXiv 2206.10915.

Only the abstract of the paper is public, not its networks, densities, budgets and seeds, so `paper`
is the usual CIFAR-10 setting. Costs were measured on an x86-64 machine with AVX-512 and include
compilation; variants without a cost were not measured.
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
    """The images to train and test on.

    Attributes:
      train, test: such as `digits/train`, `tfds:mnist/test`, `images:FOLDER`; see
        `jaxlab.data.open_images`.
      data_dir: the folder of the tensorflow_datasets data sets.
      train_images, test_images: use only this many images from the start; None: all.
      augment: random crops with 4 pixels of padding, and flips.
      normalise: whether models standardise each channel.
      image_shape, num_classes: of the images, to plan a run without reading them; None: read them.
        A run refuses other images.

    Raises:
      UsageError: only one of `image_shape` and `num_classes` is given.
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
                f"image_shape={self.image_shape} and num_classes={self.num_classes}; give both or "
                "neither"
            )

    def blank(self) -> ImageSet | None:
        """Returns two images of the given shape and classes to plan with; None if not given."""
        if self.image_shape is None:
            return None
        levels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
        images = np.broadcast_to(levels, (2, *self.image_shape))
        return ImageSet(images, [0, 0], num_classes=self.num_classes, name=f"like {self.train}")

    def open(self) -> tuple[ImageSet, ImageSet]:
        """Opens the training and test images.

        Raises:
          UsageError: images cannot be opened, or differ from `image_shape` and `num_classes`.
        """
        sets = []
        for spec, count in ((self.train, self.train_images), (self.test, self.test_images)):
            images = open_images(spec, data_dir=self.data_dir)
            expected = self.image_shape, self.num_classes
            actual = images.image_shape, images.num_classes
            if self.image_shape is not None and expected != actual:
                raise UsageError(
                    f"{spec!r} has images of {actual[0]} in {actual[1]} classes; image_shape and "
                    f"num_classes are {expected[0]} and {expected[1]}: change them, or set none"
                )
            sets.append(images if count is None else images.first(min(count, len(images))))
        return sets[0], sets[1]


@dataclasses.dataclass(frozen=True)
class Config:
    """The study: one dense network, and sparse networks with the same or less capacity.

    Attributes:
      classifier: a name in `models.CLASSIFIERS`.
      width, depth: of the dense network, whose number of weights is the capacity.
      densities: densities of the sparse networks with this capacity, which determine their widths.
      rules: how their weights are distributed over the layers, see `sparsity.densities`.
      falling_width: width of a network that keeps its size and loses capacity; None: no such
        networks.
      falling_densities: densities of those networks, besides 1.
      depths: depths of networks with `depth_width` and the capacity of the dense network; may be
        empty.
      depth_width: width of the networks of `depths`.
      with_skips: also train those networks with layer norm and skip connections (only `mlp`).
      num_seeds: number of trainings per network, with `train.seed` and the following seeds.
      claimed: the density down to which sparse networks are claimed to match the dense one; the
        nearest of `densities` is judged.
      margin: difference in accuracy that counts as equal, in [0, 1].
      data, stress, train: settings for all networks.

    Raises:
      UsageError: inconsistent fields.
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
                    raise UsageError(f"{name} has {density}; expected densities between 0 and 1")
        if not self.densities or not self.rules:
            raise UsageError("densities or rules is empty; the study needs at least one of each")
        if self.with_skips and self.depths and self.classifier != "mlp":
            raise UsageError(
                f"with_skips=True needs classifier='mlp', got {self.classifier!r}; set "
                "with_skips=False"
            )
        if self.num_seeds < 1:
            raise UsageError(f"num_seeds={self.num_seeds}; expected 1 or more")

    def model(self, images: ImageSet, **changes: Any) -> Any:
        """Returns the config of a network for these images."""
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
    """Handwritten digits, 8 by 8, without a download: 14 minutes on one core."""
    # The networks of `mnist` with inputs of 8 by 8: the dense one with 32 by 32 units has 3,392
    # weights; at density 0.01 a network with its capacity is about 17 times as wide.
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
    """MNIST from a prepared tensorflow_datasets set: 18 minutes on one core."""
    # A dense network of 32 by 32 units has 26,432 weights; the densities give widths of about 64
    # to 1,024.
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
    """CIFAR-10 with the small convolutional network, a few epochs."""
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
    """A few steps of everything, to test that it runs: under a minute. Claims need not hold."""
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
    # The usual recipe for this network (about 95% accuracy when dense); the docstring of this file
    # says what is known about the paper's.
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
