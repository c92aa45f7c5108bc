"""One table of how a classifier does on clean, corrupted and attacked images, and with noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlab.analysis import Interval
from jaxlab.analysis.accuracy import accuracy_interval
from jaxlab.core import RULES, Params, Rules, View, named
from jaxlab.evals.attacks import attack_accuracy, fgsm, pgd
from jaxlab.evals.classifier import Examples
from jaxlab.evals.prediction import predict
from jaxlab.evals.weight_noise import weight_noise_curve
from jaxlab.results import table


@dataclasses.dataclass(frozen=True)
class CardRow:
    """One accuracy of a card.

    Attributes:
      test: `clean`, `corruption`, `attack` or `weight noise`.
      name: which, such as `fog` or `pgd-20`.
      size: its severity, radius or size; None for clean images.
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
      rows: one an accuracy.
      num_images: how many images each of them is of.
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
    view: View,
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
    params: Params | None = None,
    state: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> RobustnessCard:
    """Accuracy on images as they are, corrupted and attacked, and with noise on the weights.

    Args:
      view: the model, in either mode.
      images, labels, batch_size, params, state, mesh, rules: as for `predict`.
      key: of random starts and draws.
      corrupted: `(name, severity, images)`, the same images in the same order, as arrays or image
        sets, as `data.corrupted_sets` yields them; labels are those of `images`.
      eps: radii in l-inf of FGSM and of PGD, of images in [0, 1].
      steps: of PGD.
      weight_noise: `{kind: sizes}`, see `weight_noise_curve`; by default `relative` noise of 0.1,
        0.3 and 0.5, and `worst_case` in 0.01.
      draws: of the noise, for each size.
      masks: which weights are noised, see `kept_kernels`.

    Raises:
      UsageError: as for `predict`, `pgd` and `weight_noise_curve`.
    """
    if weight_noise is None:
        weight_noise = {"relative": (0.1, 0.3, 0.5), "worst_case": (0.01,)}
    examples = Examples.of(images, labels)
    where = dict(batch_size=batch_size, params=params, state=state, mesh=mesh, rules=rules)
    # Radii and kinds in the wrong units are found before anything runs.
    attacks = [("fgsm", fgsm(view, size)) for size in eps]
    attacks += [(f"pgd-{steps}", pgd(view, size, steps=steps)) for size in eps]

    def row(test: str, name: str, size: float | None, predictions: Any) -> CardRow:
        return CardRow(test, name, size, accuracy_interval(predictions), "images")

    rows = [row("clean", "", None, predict(view, images, labels, **where))]
    for name, severity, changed in corrupted:
        changed = getattr(changed, "images", changed)
        found = predict(view, changed, examples.labels, **where)
        rows.append(row("corruption", name, severity, found))
    for name, attack in attacks:
        found = attack_accuracy(view, attack, images, labels, key=named(key, "attack"), **where)
        rows.append(row("attack", name, attack.eps, found))
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
            **where,
        )
        rows += [
            CardRow("weight noise", kind, size, interval, "draws")
            for size, interval in zip(curve.sizes, curve.intervals, strict=True)
        ]
    return RobustnessCard(tuple(rows), len(examples.labels), examples.domain)
