from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from jaxlab.data.images import corruptions

N = 64 * 32 * 32 * 3


def levels(value: int) -> np.ndarray:
    return np.full((64, 32, 32, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("name", "severity", "level", "deviation"),
    [
        ("gaussian_noise", 1, 128, 0.04 * 255),
        ("gaussian_noise", 5, 128, 0.10 * 255),
        ("speckle_noise", 1, 128, 0.06 * 128),
        ("speckle_noise", 5, 100, 0.2 * 100),
    ],
)
def test_gaussian_noise_has_the_deviation_and_shape(name, severity, level, deviation):
    change = corruptions.corrupt(levels(level), name, severity).astype(float) - level
    # Cutting off takes half a level off the mean and adds a uniform error.
    assert change.mean() == pytest.approx(-0.5, abs=5 * deviation / np.sqrt(N))
    assert change.std() == pytest.approx(np.sqrt(deviation**2 + 1 / 12), rel=0.01)
    assert scipy.stats.skew(change, None) == pytest.approx(0, abs=5 * np.sqrt(6 / N))
    assert scipy.stats.kurtosis(change, None) == pytest.approx(0, abs=5 * np.sqrt(24 / N))


def test_noise_of_a_value_is_independent_of_its_neighbours():
    change = corruptions.corrupt(levels(128), "gaussian_noise", 5).astype(float)
    change -= change.mean()
    for axis in (0, 1, 2, 3):
        product = (change * np.roll(change, 1, axis)).mean() / change.var()
        assert product == pytest.approx(0, abs=5 / np.sqrt(N))


def test_speckle_leaves_black_alone():
    assert (corruptions.corrupt(levels(0), "speckle_noise", 5) == 0).all()


@pytest.mark.parametrize(("severity", "level"), [(5, 1), (5, 40), (5, 128), (3, 90)])
def test_shot_noise_counts_photons_by_poissons_law(severity, level):
    photons = (500, 250, 100, 75, 50)[severity - 1]
    out = corruptions.corrupt(levels(level), "shot_noise", severity)
    counts = np.round((out + 0.5) * photons / 255).astype(int)
    law = scipy.stats.poisson(photons * level / 255)
    found = np.bincount(counts.reshape(-1))
    expected = N * law.pmf(np.arange(len(found)))
    usual = expected > 10
    statistic = ((found - expected)[usual] ** 2 / expected[usual]).sum()
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-6, usual.sum())
    assert N - found[usual].sum() < 10 + 5 * np.sqrt(N - expected[usual].sum() + 1)


@pytest.mark.parametrize("severity", [1, 5])
def test_shot_noise_has_the_mean_and_variance_of_its_rate(severity):
    photons = (500, 250, 100, 75, 50)[severity - 1]
    out = corruptions.corrupt(levels(100), "shot_noise", severity) + 0.5
    variance = 255 * 100 / photons
    assert out.mean() == pytest.approx(100, abs=0.05 + 5 * np.sqrt(variance / N))
    assert out.var() == pytest.approx(variance + 1 / 12, rel=0.02)
    assert (corruptions.corrupt(levels(0), "shot_noise", severity) == 0).all()


@pytest.mark.parametrize(("severity", "share"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_takes_its_share_of_values_to_either_end(severity, share):
    out = corruptions.corrupt(levels(100), "impulse_noise", severity)
    margin = 5 * np.sqrt(share / 2 / N)
    assert (out == 0).mean() == pytest.approx(share / 2, abs=margin)
    assert (out == 255).mean() == pytest.approx(share / 2, abs=margin)
    assert set(np.unique(out)) == {0, 100, 255}
