from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from jaxlab import data, evals
from jaxlab.core import UsageError, View
from jaxlab.data.images import corruptions

NAMES = corruptions.EVALUATED_NAMES
RNG = np.random.default_rng(0)
OURS = {name: RNG.uniform(0.2, 0.9, 5).tolist() for name in NAMES}
THEIRS = {name: RNG.uniform(0.2, 0.9, 5).tolist() for name in NAMES}


def test_mean_corruption_error_is_the_mean_of_ratios_of_sums():
    ratios = [sum(OURS[name]) / sum(THEIRS[name]) for name in NAMES]
    assert evals.mean_corruption_error(OURS, THEIRS) == pytest.approx(np.mean(ratios))
    each = evals.corruption_errors(OURS, THEIRS)
    assert list(each) == list(NAMES)
    np.testing.assert_allclose(list(each.values()), ratios)


def test_the_reference_scores_1():
    assert evals.mean_corruption_error(THEIRS, THEIRS) == pytest.approx(1)
    assert evals.relative_mean_corruption_error(THEIRS, 0.1, THEIRS, 0.1) == pytest.approx(1)


def test_relative_errors_count_what_corruption_adds():
    ratios = [(sum(OURS[n]) - 5 * 0.05) / (sum(THEIRS[n]) - 5 * 0.1) for n in NAMES]
    found = evals.relative_corruption_errors(OURS, 0.05, THEIRS, 0.1)
    np.testing.assert_allclose(list(found.values()), ratios)
    mean = evals.relative_mean_corruption_error(OURS, 0.05, THEIRS, 0.1)
    assert mean == pytest.approx(np.mean(ratios))
    # A net that loses nothing has a relative error of 0, whatever its clean error.
    flat = {name: [0.3] * 5 for name in NAMES}
    assert evals.relative_mean_corruption_error(flat, 0.3, THEIRS, 0.1) == pytest.approx(0)


def test_plain_mean_leaves_other_corruptions_out():
    extra = {**OURS, "saturate": [1.0] * 5}
    assert evals.plain_mean_error(extra) == pytest.approx(np.mean(list(OURS.values())))
    assert evals.plain_mean_error(extra, ["saturate"]) == 1


def test_errors_are_gathered_by_corruption_and_severity():
    sets = [
        (n, s, np.full(1, 10 * i + s))
        for i, n in enumerate(["fog", "snow"])
        for s in (1, 2, 3, 4, 5)
    ]
    errors = evals.errors_by_corruption(lambda images: images[0] / 100, sets)
    assert errors == {"fog": [0.01, 0.02, 0.03, 0.04, 0.05], "snow": [0.11, 0.12, 0.13, 0.14, 0.15]}
    with pytest.raises(UsageError, match="severity 3 of fog came as number 2"):
        evals.errors_by_corruption(lambda images: 0.0, [sets[0], sets[2]])


class Corners(nnx.Module):
    """Says whether the first pixel or the last is lighter."""

    def __call__(self, x_bhwc):
        return x_bhwc.reshape(len(x_bhwc), -1)[:, [0, -1]]


def test_corrupted_image_sets_are_evaluated_with_their_labels_and_domain(tmp_path):
    levels = RNG.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    view = View.of(Corners())
    labels = evals.predict(view, levels, np.zeros(20, int), batch_size=20).logits.argmax(1)
    test = data.ImageSet(levels, labels, num_classes=2, name="squares")
    changed = data.corrupted(test, "pixelate", 5, any_size=True)
    found = evals.predict(view, changed, batch_size=20)
    assert found.domain == "squares/pixelate/5" and found.labels.tolist() == labels.tolist()
    expected = corruptions.corrupt(levels, "pixelate", 5, any_size=True)[:, [0, -1], [0, -1], 0]
    right = expected.argmax(1) == labels
    assert found.accuracy == pytest.approx(right.mean()) and not right.all()
    errors = evals.errors_by_corruption(
        lambda images: 1 - evals.predict(view, images, batch_size=20).accuracy,
        data.corrupted_sets(test, ["pixelate"], any_size=True, cache_dir=tmp_path),
    )
    assert len(errors["pixelate"]) == 5
    assert errors["pixelate"][4] == pytest.approx(1 - right.mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fog": None}, "errors lack fog .1 of 15"),
        ({"fog": [0.1] * 4}, r"errors of fog have shape \[4\]; expected 5"),
        ({"fog": [0.1, 0.2, 30, 0.4, 0.5]}, "error 30 .that of fog at severity 3 in errors."),
        ({"fog": [0.1, 0.2, float("nan"), 0.4, 0.5]}, "error nan"),
        ({"fogg": [0.1] * 5}, "no corruption 'fogg'.*did you mean 'fog'"),
    ],
)
def test_errors_that_do_not_fit_are_named(change, message):
    errors = {name: e for name, e in {**OURS, **change}.items() if e is not None}
    for score in (
        lambda: evals.plain_mean_error(errors),
        lambda: evals.mean_corruption_error(errors, THEIRS),
        lambda: evals.relative_mean_corruption_error(errors, 0.1, THEIRS, 0.1),
    ):
        with pytest.raises(UsageError, match=message):
            score()
    with pytest.raises(UsageError, match=message.replace("errors", "reference_errors")):
        evals.mean_corruption_error(OURS, errors)


def test_photographs_and_our_own_frost_are_not_mixed_up():
    with pytest.raises(UsageError, match="errors lack frost .1 of 15"):
        evals.plain_mean_error(OURS, corruptions.NAMES)


def test_a_reference_without_errors_is_refused():
    perfect = {**THEIRS, "snow": [0.0] * 5}
    with pytest.raises(UsageError, match="errors on snow sum to 0"):
        evals.mean_corruption_error(OURS, perfect)
    with pytest.raises(UsageError, match="errors on .* sum to -"):
        evals.relative_mean_corruption_error(OURS, 0.1, THEIRS, 1.0)
    with pytest.raises(UsageError, match="the clean one of reference_errors"):
        evals.relative_mean_corruption_error(OURS, 0.1, THEIRS, 8.5)
    with pytest.raises(UsageError, match="names holds no corruption"):
        evals.plain_mean_error(OURS, [])
