"""One battery of tests of an image classifier: corruptions, attacks, noise on its weights."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxlab.core import UsageError, View
from jaxlab.data import ImageSet, corrupted, corruptions
from jaxlab.evals.attacks import attack_accuracy, fgsm, pgd
from jaxlab.evals.prediction import predict
from jaxlab.evals.weight_noise import weight_noise_curve


@dataclasses.dataclass(frozen=True)
class Stress:
    """What trained classifiers are tested under.

    Attributes:
      noise: standard deviation of noise on pixels, of images in [0, 1].
      corruptions: names with severities, such as `contrast/4`.
      eps: largest change of a pixel by FGSM and PGD, of images in [0, 1].
      steps: of PGD.
      relative: weights w become `w (1 + relative e)`, e standard normal.
      rms: or `w + rms * rms_l e`, with `rms_l` the root mean square of layer l.
      worst: or move by this share of each layer's norm where the loss grows most.
      draws: of each noise on weights.

    Raises:
      UsageError: a value out of its range, or an unknown corruption.
    """

    noise: float = 0.2
    corruptions: tuple[str, ...] = ("contrast/4",)
    eps: float = 0.05
    steps: int = 20
    relative: float = 0.5
    rms: float = 0.5
    worst: float = 0.02
    draws: int = 5

    def __post_init__(self):
        for spec in self.corruptions:
            name, _, severity = spec.partition("/")
            corruptions.make(name, int(severity) if severity.isdigit() else 0, any_size=True)
        # Before anything is trained, and not when the first net is tested.
        limits = {"noise": math.inf, "eps": 1, "relative": math.inf, "rms": math.inf, "worst": 1}
        for name, most in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= most or not math.isfinite(value):
                way_out = "; levels are written as 8 / 255, 0.0314" if name == "eps" else ""
                upto = f" to {most}" if most == 1 else " or more"
                raise UsageError(f"stress.{name}={value:g}; expected 0{upto}{way_out}")
        if min(self.steps, self.draws) < 1:
            raise UsageError(f"steps={self.steps} and draws={self.draws}; expected 1 or more")

    def changed_images(
        self, images: ImageSet, cache_dir: str | os.PathLike[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The images with noise on their pixels and with each corruption, by name.

        Args:
          images: n images.
          cache_dir: keeps corrupted sets, so that they are made once.

        Returns:
          `{name: images}`, such as `contrast_4`; each [n, h, w, c].
        """
        noise = dataclasses.replace(
            corruptions.make("gaussian_noise", 1, any_size=True), parameters=(self.noise,)
        )
        key = jax.random.key(0, impl="threefry2x32")
        changed = {f"noise_{self.noise:g}": np.asarray(noise(key, images.images))}
        for spec in self.corruptions:
            name, _, severity = spec.partition("/")
            made = corrupted(images, name, int(severity), any_size=True, cache_dir=cache_dir)
            changed[f"{name}_{severity}"] = made.images
        return changed

    def tests(
        self, images: ImageSet, changed: Mapping[str, np.ndarray]
    ) -> dict[str, Callable[[View], float]]:
        """The tests by `split/name`; each takes a trained model and returns its accuracy in [0, 1].

        Args:
          images: labelled test images.
          changed: see `changed_images`.
        """
        x, labels = images.images, images.labels

        def predicted(x: np.ndarray, view: View) -> float:
            return predict(view, x, labels).accuracy

        def attacked(make: Callable[..., Any], view: View) -> float:
            return attack_accuracy(view, make(view), x, labels, key=jax.random.key(0)).accuracy

        def perturbed(kind: str, size: float, draws: int, view: View) -> float:
            key = jax.random.key(1)
            curve = weight_noise_curve(
                view, x, labels, kind=kind, sizes=[size], key=key, draws=draws
            )
            return float(curve.accuracies.mean())

        tests = {
            "clean": functools.partial(predicted, x),
            **{f"changed_{name}": functools.partial(predicted, x) for name, x in changed.items()},
            "fgsm": functools.partial(attacked, functools.partial(fgsm, eps=self.eps)),
            "pgd": functools.partial(
                attacked, functools.partial(pgd, eps=self.eps, steps=self.steps)
            ),
            "relative": functools.partial(perturbed, "relative", self.relative, self.draws),
            "rms": functools.partial(perturbed, "rms", self.rms, self.draws),
            "worst": functools.partial(perturbed, "worst_case", self.worst, 1),
        }
        return {f"{name}/accuracy": test for name, test in tests.items()}
