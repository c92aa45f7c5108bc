"""Checks that an attack is not fooled by useless gradients (arXiv 1802.00420, 1902.06705).

A model may look robust only because gradient steps fail to find the images that it gets wrong. Each
check is a fact that holds where they do find them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import Predictions, UsageError, View, as_view
from jaxlab.evals.attacks import Attack, attack_accuracy, pgd, random_search
from jaxlab.evals.images import error_log_odds
from jaxlab.evals.prediction import predict
from jaxlab.results import Claim

_LEAST_RISING = 0.95


def gradient_masking_checks(
    view: View | nnx.Module,
    images: Any,
    labels: Any = None,
    *,
    eps: float,
    key: jax.Array,
    norm: str = "linf",
    steps: int = 20,
    other: View | nnx.Module | None = None,
    tolerance: float = 0.01,
    batch_size: int = 256,
) -> tuple[Claim, ...]:
    """Checks whether PGD on a model can be trusted: six checks, seven with another model.

    * the loss rises along the gradient: on at least 95% of the images, for a step of eps / 10
    * more steps do not help the model: accuracy under 1, `steps` / 4, `steps` and 2 `steps`
    * a larger radius does not help the model: accuracy under eps / 4, eps / 2, eps and 2 eps
    * PGD is no weaker than one gradient step of the same norm
    * PGD without a bound leaves no image right (with twice the steps)
    * the worst of ten random points of the ball is no stronger than PGD
    * attacking the model is no weaker than attacking `other` and predicting with the model

    It costs about 9 attacks of `steps`, in one program.

    Args:
      view: the model or its view.
      images, labels, batch_size: as for `predict`; a few hundred images are enough.
      eps: radius in `norm`, of images in [0, 1], above 0.
      key: a typed key, for the random starts.
      norm: `linf` or `l2`.
      steps: number of PGD steps, 4 or more.
      other: a second model for the same images, for the last check.
      tolerance: how far accuracies may be out of order, as a share of the images.

    Returns:
      For each check its statement, what is expected and measured, and whether it holds. Checks that
      hold do not prove that an attack is strong; a check that fails shows that it is weak.

    Raises:
      UsageError: as for `pgd` and `attack_accuracy`; a radius of 0, fewer than 4 steps.
    """
    if not eps:
        raise UsageError("eps=0; the checks take a radius above 0, such as 8 / 255")
    if steps < 4:
        raise UsageError(f"steps={steps}; expected 4 or more, to compare fewer steps with more")
    view = as_view(view)

    def under(attack: Attack) -> Predictions:
        return attack_accuracy(view, attack, images, labels, key=key, batch_size=batch_size)

    clean = predict(view, images, labels, batch_size=batch_size)
    whole_box = _whole_box(norm, images)
    attack = functools.partial(pgd, view, norm=norm, steps=steps)
    at_eps = under(attack(eps)).accuracy
    by_steps = [under(attack(eps, steps=n)).accuracy for n in (1, steps // 4)] + [
        at_eps,
        under(attack(eps, steps=2 * steps)).accuracy,
    ]
    by_eps = [
        at_eps if size == eps else under(attack(size)).accuracy
        for size in (min(share * eps, whole_box) for share in (0.25, 0.5, 1, 2))
    ]
    single, small = (
        under(Attack(view, eps, norm, 1, length, random_start=False)) for length in (eps, eps / 10)
    )
    claims = [
        _rising(clean, small),
        _falling("more steps do not help the model", by_steps, tolerance),
        _falling("a larger radius does not help the model", by_eps, tolerance),
        _at_most("PGD is no weaker than one gradient step", at_eps, single.accuracy, tolerance),
        _unbounded(under(attack(whole_box, steps=2 * steps)).accuracy),
        _at_most(
            "the worst of ten random points is no stronger than PGD",
            at_eps,
            under(random_search(view, eps, norm)).accuracy,
            tolerance,
        ),
    ]
    if other is not None:
        transferred = under(pgd(other, eps, norm, steps=steps)).accuracy
        claim = "attacking the model is no weaker than attacking another"
        claims.append(_at_most(claim, at_eps, transferred, tolerance))
    return tuple(claims)


def _whole_box(norm: str, images: Any) -> float:
    """The radius that reaches every image in [0, 1]."""
    shape = np.shape(getattr(images, "images", images))[1:]
    return 1.0 if norm == "linf" else math.sqrt(math.prod(shape))


def _rising(clean: Predictions, moved: Predictions) -> Claim:
    before, after = (_log_odds(predictions) for predictions in (clean, moved))
    share = float((after > before).mean())
    expected = f"on >= {_LEAST_RISING:.0%} of the images"
    return Claim(
        "the loss rises along the gradient", expected, f"on {share:.1%}", share >= _LEAST_RISING
    )


def _log_odds(predictions: Predictions) -> np.ndarray:
    return np.asarray(
        error_log_odds(jnp.asarray(predictions.logits), jnp.asarray(predictions.labels))
    )


def _falling(claim: str, accuracies: Sequence[float], tolerance: float) -> Claim:
    least = np.minimum.accumulate(accuracies)
    rise = float((np.array(accuracies) - least).max())
    measured = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
    return Claim(
        claim, f"never above an earlier one by > {tolerance:.1%}", measured, rise <= tolerance
    )


def _at_most(claim: str, stronger: float, weaker: float, tolerance: float) -> Claim:
    return Claim(
        claim,
        f"PGD at most {weaker:.1%} + {tolerance:.1%}",
        f"{stronger:.1%}",
        stronger <= weaker + tolerance,
    )


def _unbounded(accuracy: float) -> Claim:
    return Claim(
        "PGD without a bound leaves no image right", "0.0%", f"{accuracy:.1%}", accuracy == 0
    )
