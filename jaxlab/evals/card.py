"""One table of a classifier's accuracy on clean, corrupted and attacked images, and with noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from jaxlab.analysis import Interval
from jaxlab.analysis.accuracy import accuracy_interval
from jaxlab.core import Predictions, View, as_view, named
from jaxlab.evals.attacks import attack_accuracy, fgsm, pgd
from jaxlab.evals.images import Examples
from jaxlab.evals.prediction import predict
from jaxlab.evals.weight_noise import weight_noise_curve
from jaxlab.results import table


@dataclasses.dataclass(frozen=True)
class CardRow:
    """One accuracy of a card.

    Attributes:
      test: `clean`, `corruption`, `attack` or `weight noise`.
      name: which one, such as `fog` or `pgd-20`.
      size: severity, radius or size; None for clean images.
      accuracy: in [0, 1], with its 95% interval.
      over: what the interval is over: `images`, or `draws` of noise.
    """

    test: str
    name: str
    size: float | None
    accuracy: Interval
    over: str


@dataclasses.dataclass(frozen=True)
class RobustnessCard:
    """Accuracies of one model under several tests; `print` it for a table in percent.

    Attributes:
      rows: one per accuracy.
      num_images: number of images behind each of them.
      domain: where the images come from.
    """

    rows: tuple[CardRow, ...]
    num_images: int
    domain: str = ""

    def __str__(self) -> str:
        def percent(share: float) -> str:
            return f"{100 * share:.1f}"

        rows = [
            {
                "test": row.test,
                "name": row.name,
                "size": "" if row.size is None else f"{row.size:.3g}",
                "accuracy %": percent(row.accuracy.value),
                "95% interval": f"{percent(row.accuracy.low)} to {percent(row.accuracy.high)}",
                "over": row.over,
            }
            for row in self.rows
        ]
        of = f" of {self.domain}" if self.domain else ""
        return f"{self.num_images} images{of}\n{table(rows)}"


def robustness_card(
    view: View | nnx.Module,
    images: Any,
    labels: Any = None,
    *,
    key: jax.Array,
    corrupted: Iterable[tuple[str, float, Any]] = (),
    eps: Sequence[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    steps: int = 20,
    weight_noise: Mapping[str, Sequence[float]] | None = None,
    draws: int = 5,
    masks: Mapping[str, Any] | None = None,
    batch_size: int = 256,
) -> RobustnessCard:
    """Accuracy on clean, corrupted and attacked images, and with noise on the weights.

    Args:
      view: the model or its view, in either mode.
      images, labels, batch_size: as for `predict`.
      key: a typed key, for random starts and draws.
      corrupted: `(name, severity, images)`, the same images in the same order, as arrays or image
        sets, as `data.corrupted_sets` yields them; labels are those of `images`.
      eps: radii of FGSM and of PGD in l-inf, of images in [0, 1].
      steps: number of PGD steps.
      weight_noise: `{kind: sizes}`, see `weight_noise_curve`; by default `relative` noise of 0.1,
        0.3 and 0.5, and `worst_case` of 0.01.
      draws: number of draws of the noise for each size.
      masks: the weights that get noise, see `kept_kernels`.

    Raises:
      UsageError: as for `predict`, `pgd` and `weight_noise_curve`.
    """
    if weight_noise is None:
        weight_noise = {"relative": (0.1, 0.3, 0.5), "worst_case": (0.01,)}
    view, examples = as_view(view), Examples.of(images, labels)
    # Radii in the wrong units are found before anything runs.
    attacks = [("fgsm", fgsm(view, size)) for size in eps]
    attacks += [(f"pgd-{steps}", pgd(view, size, steps=steps)) for size in eps]

    def row(test: str, name: str, size: float | None, predictions: Predictions) -> CardRow:
        return CardRow(test, name, size, accuracy_interval(predictions), "images")

    rows = [row("clean", "", None, predict(view, images, labels, batch_size=batch_size))]
    for name, severity, changed in corrupted:
        changed = getattr(changed, "images", changed)
        predictions = predict(view, changed, examples.labels, batch_size=batch_size)
        rows.append(row("corruption", name, severity, predictions))
    for name, attack in attacks:
        predictions = attack_accuracy(
            view, attack, images, labels, key=named(key, "attack"), batch_size=batch_size
        )
        rows.append(row("attack", name, attack.eps, predictions))
    for kind, sizes in weight_noise.items():
        curve = weight_noise_curve(
            view,
            images,
            labels,
            kind=kind,
            sizes=sizes,
            draws=draws,
            masks=masks,
            key=named(key, "weights"),
            batch_size=batch_size,
        )
        rows += [
            CardRow("weight noise", kind, size, interval, "draws")
            for size, interval in zip(curve.sizes, curve.intervals, strict=True)
        ]
    return RobustnessCard(tuple(rows), len(examples.labels), examples.domain)
