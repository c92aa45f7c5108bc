"""Errors under corruption as one number: plain, against a reference, and beyond the clean error.

An error is a share of examples in [0, 1]; `errors` are `{name: [errors at severity 1 to 5]}`.
Source: Hendrycks and Dietterich, arXiv 1903.12261, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from jaxlab.core import UsageError, nearest
from jaxlab.data.images.corruptions import (
    EVALUATED_NAMES,
    EXTRA_NAMES,
    NAMES,
    OWN_NAMES,
    SEVERITIES,
)

Errors = Mapping[str, Sequence[float]]
"""`{name of a corruption: errors at severity 1 to 5, in [0, 1]}`."""


Images = TypeVar("Images")
"""What `data.corrupted_sets` yields: arrays or image sets."""


def errors_by_corruption(
    error_of: Callable[[Images], float], sets: Iterable[tuple[str, int, Images]]
) -> dict[str, list[float]]:
    """The error on each corrupted set, `{name: [errors by severity]}`.

    Args:
      error_of: `images -> error`, a share in [0, 1]; for image sets
        `lambda images: 1 - predict(view, images).accuracy`.
      sets: `(name, severity, images)`, severities in order, as `data.corrupted_sets` yields them:
        arrays, or image sets.

    Raises:
      UsageError: severities of a name that are not 1, 2, ... in order.

    >>> sets = [("contrast", s, np.full(10, s)) for s in SEVERITIES]
    >>> errors_by_corruption(lambda images: images.mean() / 10, sets)
    {'contrast': [0.1, 0.2, 0.3, 0.4, 0.5]}
    """
    errors: dict[str, list[float]] = {}
    for name, severity, images in sets:
        by_severity = errors.setdefault(name, [])
        if severity != len(by_severity) + 1:
            raise UsageError(
                f"severity {severity} of {name} came as number {len(by_severity) + 1}; expected "
                "the severities 1 to 5 in order"
            )
        by_severity.append(float(error_of(images)))
    return errors


def plain_mean_error(errors: Errors, names: Sequence[str] = EVALUATED_NAMES) -> float:
    """The plain mean over corruptions and severities, as is usual for CIFAR-10-C.

    Args:
      errors: errors of the model.
      names: the corruptions; by default the fifteen standard ones with `frost_procedural` in place
        of `frost` (to compare with published numbers pass `corruptions.NAMES`). Others in `errors`
        do not count.

    Raises:
      UsageError: a corruption that is missing or unknown; not five errors, or one outside [0, 1].

    >>> plain_mean_error({"fog": [0.1, 0.2, 0.3, 0.4, 0.5]}, names=["fog"])
    0.3
    """
    return float(_table(errors, names, "errors").mean())


def corruption_errors(
    errors: Errors, reference_errors: Errors, names: Sequence[str] = EVALUATED_NAMES
) -> dict[str, float]:
    """`CE_c = sum over s of E_sc / sum over s of the reference's E_sc`, for each corruption c.

    Args:
      errors: errors of the model.
      reference_errors: errors of the reference model, on the same sets.
      names: the corruptions, as for `plain_mean_error`.

    Raises:
      UsageError: as for `plain_mean_error`; a corruption on which the reference makes no error.
    """
    ours, theirs = (
        _table(of, names, noun).sum(axis=1)
        for of, noun in ((errors, "errors"), (reference_errors, "reference_errors"))
    )
    return _ratios(names, ours, theirs)


def mean_corruption_error(
    errors: Errors, reference_errors: Errors, names: Sequence[str] = EVALUATED_NAMES
) -> float:
    """mCE: the mean of `corruption_errors`; 1 for the reference itself.

    >>> reference = {"fog": [0.5] * 5, "snow": [0.25] * 5}
    >>> ours = {"fog": [0.25] * 5, "snow": [0.25] * 5}
    >>> mean_corruption_error(ours, reference, names=["fog", "snow"])
    0.75
    """
    return float(np.mean(list(corruption_errors(errors, reference_errors, names).values())))


def relative_corruption_errors(
    errors: Errors,
    clean_error: float,
    reference_errors: Errors,
    reference_clean_error: float,
    names: Sequence[str] = EVALUATED_NAMES,
) -> dict[str, float]:
    """`corruption_errors` of the error that corruption adds: each E minus its model's clean error.

    Args:
      errors: errors of the model.
      clean_error: error of the model on clean images.
      reference_errors: errors of the reference model, on the same sets.
      reference_clean_error: error of the reference model on clean images.
      names: the corruptions, as for `plain_mean_error`.

    Raises:
      UsageError: as for `plain_mean_error`; a corruption that adds nothing to the reference's
        error.
    """
    ours, theirs = (
        (_table(of, names, noun) - _share(clean, f"the clean one of {noun}")).sum(axis=1)
        for of, clean, noun in (
            (errors, clean_error, "errors"),
            (reference_errors, reference_clean_error, "reference_errors"),
        )
    )
    return _ratios(names, ours, theirs)


def relative_mean_corruption_error(
    errors: Errors,
    clean_error: float,
    reference_errors: Errors,
    reference_clean_error: float,
    names: Sequence[str] = EVALUATED_NAMES,
) -> float:
    """Relative mCE: the mean of `relative_corruption_errors`; 1 for the reference itself."""
    relative = relative_corruption_errors(
        errors, clean_error, reference_errors, reference_clean_error, names
    )
    return float(np.mean(list(relative.values())))


def _table(errors: Errors, names: Sequence[str], noun: str) -> np.ndarray:
    """The errors of these corruptions, float64 [names, 5]."""
    known = {*NAMES, *EXTRA_NAMES, *OWN_NAMES}
    for name in (*names, *errors):
        if name not in known:
            raise UsageError(f"no corruption {name!r} (in names or {noun}){nearest(name, known)}")
    if not names:
        raise UsageError("names holds no corruption; expected one or more")
    if missing := [name for name in names if name not in errors]:
        raise UsageError(
            f"{noun} lack {', '.join(missing)} ({len(missing)} of {len(names)} corruptions); "
            "evaluate on them too, or pass names= with those that should count"
        )
    for name in names:
        given = np.shape(errors[name])
        if given != (len(SEVERITIES),):
            raise UsageError(
                f"{noun} of {name} have shape {list(given)}; expected {len(SEVERITIES)} numbers, "
                "one for each severity from 1 to 5"
            )
    return np.array(
        [
            [
                _share(value, f"that of {name} at severity {s} in {noun}")
                for s, value in zip(SEVERITIES, errors[name], strict=True)
            ]
            for name in names
        ]
    )


def _share(value: float, which: str) -> float:
    if not 0 <= value <= 1:
        raise UsageError(
            f"error {value:g} ({which}); expected a share of examples in [0, 1], not percent"
        )
    return float(value)


def _ratios(names: Sequence[str], ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    for name, total in zip(names, theirs, strict=True):
        if total <= 0:
            raise UsageError(
                f"the reference's errors on {name} sum to {total:g}; expected more than 0: take a "
                "reference that the corruption harms, or leave it out of names="
            )
    return {
        name: float(a / b) for name, a, b in zip(names, ours.tolist(), theirs.tolist(), strict=True)
    }
