from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax
from scipy.stats import kstest

from jaxlab.core import MeshConfig, UsageError, View, make_mesh
from jaxlab.evals import (
    kept_kernels,
    perturb_weights,
    predict,
    weight_noise_curve,
    worst_case_weights,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((10, 2, 3, 1)).astype(np.float32)
LABELS = RNG.integers(0, 3, 10)


class Net(nnx.Module):
    """Two layers with normalisation between them; counts how often it is traced."""

    traces: list = []

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.up, self.norm = nnx.Linear(6, 20, rngs=rngs), nnx.LayerNorm(20, rngs=rngs)
        self.down = nnx.Linear(20, 3, rngs=rngs)

    def __call__(self, x_bhwc):
        Net.traces.append(x_bhwc.shape)
        return 3 * self.down(nnx.relu(self.norm(self.up(x_bhwc.reshape(len(x_bhwc), 6)))))


@pytest.fixture(scope="module")
def view() -> View:
    """Half of the entries of the first kernel are 0."""
    view = View.of(Net())
    mask = np.random.default_rng(1).random((6, 20)) < 0.5
    return view.at(view.params | {"up/kernel": view.params["up/kernel"] * mask})


@pytest.fixture(scope="module")
def labels(view) -> np.ndarray:
    """What the model itself says, so that its accuracy is 1."""
    return predict(view, IMAGES, LABELS, batch_size=4).logits.argmax(1)


def wide_params() -> dict:
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(100, 200)) * rng.uniform(0.1, 3, 200)
    kernel[rng.random(kernel.shape) < 0.5] = 0
    return {
        "bias": jnp.ones(200),
        "kernel": jnp.asarray(kernel, jnp.float32),
        "conv/kernel": jnp.asarray(rng.normal(size=(3, 3, 40, 50)), jnp.float32),
        "embed/embedding": jnp.ones((4, 4)),
        "scale/kernel": jnp.ones(7),
    }


def mean_loss(view: View, params, labels) -> float:
    logits = np.asarray(view.apply(params, IMAGES), np.float64)
    return -log_softmax(logits, axis=1)[np.arange(10), labels].mean()


@pytest.mark.parametrize("kind", ["gaussian", "rms", "relative"])
def test_noise_is_normal_and_of_its_size_on_kept_entries_alone(kind):
    params = wide_params()
    noisy = perturb_weights(params, kind, 0.3, KEY)
    assert list(noisy) == sorted(params)
    for path in ("bias", "embed/embedding", "scale/kernel"):
        np.testing.assert_array_equal(noisy[path], params[path])
    for path in ("kernel", "conv/kernel"):
        w, new = (np.asarray(p[path], np.float64) for p in (params, noisy))
        kept = w != 0
        np.testing.assert_array_equal(new[~kept], 0)
        unit = {"gaussian": 1.0, "rms": np.sqrt((w[kept] ** 2).mean()), "relative": w[kept]}[kind]
        e = (new - w)[kept] / (0.3 * unit)
        assert kstest(e, "norm").pvalue > 0.01
        assert e.std() == pytest.approx(1, abs=5 / np.sqrt(2 * e.size))


def test_noise_is_of_its_key_and_another_in_each_layer():
    like = {"a/kernel": jnp.ones((30, 30)), "b/kernel": jnp.ones((30, 30))}
    first, same, other = (
        perturb_weights(like, "gaussian", 0.3, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first["a/kernel"], same["a/kernel"])
    for e in (first["b/kernel"], other["a/kernel"]):
        correlation = np.corrcoef(np.ravel(first["a/kernel"]), np.ravel(e))[0, 1]
        assert abs(correlation) < 5 / 30
    still = perturb_weights(like, "gaussian", 0.0, KEY)
    np.testing.assert_array_equal(still["a/kernel"], like["a/kernel"])


def test_masks_keep_entries_as_they_are():
    params = wide_params()
    mask = np.random.default_rng(4).random((100, 200)) < 0.5
    kept = kept_kernels(params, {"kernel": mask})
    np.testing.assert_array_equal(kept["kernel"], mask & (np.asarray(params["kernel"]) != 0))
    assert kept["conv/kernel"].all() and sorted(kept) == ["conv/kernel", "kernel"]
    noisy = perturb_weights(params, "rms", 0.3, KEY, masks={"kernel": mask})
    changed = np.asarray(noisy["kernel"]) != np.asarray(params["kernel"])
    np.testing.assert_array_equal(changed, kept["kernel"])


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.5])
def test_worst_weights_lie_in_the_ball_of_each_layer(view, labels, rho):
    worst = worst_case_weights(view, IMAGES, labels, rho=rho, key=KEY, batch_size=4)
    assert list(worst) == list(view.params)
    for path, w in view.params.items():
        w, new = np.asarray(w, np.float64), np.asarray(worst[path], np.float64)
        if path.endswith("kernel"):
            moved = np.linalg.norm(new - w) / np.linalg.norm(w)
            assert moved <= rho + 1e-6 and moved >= 0.9 * rho
            np.testing.assert_array_equal(new[w == 0], 0)
        else:
            np.testing.assert_array_equal(new, w)


def test_no_random_weights_of_the_ball_are_worse_than_the_worst(view, labels):
    worst = worst_case_weights(view, IMAGES, labels, rho=0.1, key=KEY, batch_size=4)
    reached, rng, highest = mean_loss(view, worst, labels), np.random.default_rng(5), 0.0
    for _ in range(50):
        drawn = dict(view.params)
        for path in ("up/kernel", "down/kernel"):
            w = np.asarray(drawn[path])
            e = rng.normal(size=w.shape) * (w != 0)
            drawn[path] = (w + 0.1 * np.linalg.norm(w) * e / np.linalg.norm(e)).astype(np.float32)
        highest = max(highest, mean_loss(view, drawn, labels))
    assert reached > highest > mean_loss(view, view.params, labels)


def test_the_worst_weights_of_a_line_are_known():
    class Line(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32))

        def __call__(self, x_bhwc):
            return x_bhwc.reshape(len(x_bhwc), 6) @ self.kernel[...]

    view = View.of(Line())
    w, x = np.asarray(view.params["kernel"], np.float64), IMAGES[0].ravel()
    # The loss of label 0 rises with x (w_1 - w_0): from w along -x and x.
    expected = w + 0.2 * np.linalg.norm(w) * np.outer(x, [-1, 1]) / (np.sqrt(2) * np.linalg.norm(x))
    worst = worst_case_weights(
        view, IMAGES[:1], np.zeros(1, int), rho=0.2, key=KEY, step_size=1.0, batch_size=2
    )
    np.testing.assert_allclose(worst["kernel"], expected, atol=1e-4)


def test_worst_weights_are_of_all_images_whatever_the_batches(view, labels):
    found = [
        worst_case_weights(view, IMAGES, labels, rho=0.1, key=KEY, batch_size=size, steps=3)
        for size in (4, 10)
    ]
    sharded = view.on(make_mesh(MeshConfig(data=8)))
    found.append(
        worst_case_weights(sharded, IMAGES, labels, rho=0.1, key=KEY, batch_size=8, steps=3)
    )
    for other in found[1:]:
        for path in other:
            np.testing.assert_allclose(other[path], found[0][path], atol=2e-5)


@pytest.mark.parametrize("kind", ["relative", "worst_case"])
def test_a_curve_starts_at_the_clean_accuracy_and_falls(view, labels, kind):
    sizes = (0.0, 0.2, 1.0)
    curve = weight_noise_curve(
        view, IMAGES, labels, kind=kind, sizes=sizes, draws=3, key=KEY, batch_size=4
    )
    assert curve.accuracies.shape == (3, 3) and curve.sizes == sizes and curve.kind == kind
    assert (curve.accuracies[0] == 1).all()
    means = curve.accuracies.mean(axis=1)
    assert means[0] >= means[1] > means[2]
    assert [interval.value for interval in curve.intervals] == pytest.approx(means)
    assert curve.intervals[0] == (1, 1, 1)
    assert all(0 <= low <= mean <= high <= 1 for mean, low, high in curve.intervals)


def test_a_curve_is_of_perturbed_weights(view, labels):
    sparse = {"up/kernel": np.zeros((6, 20), bool)}
    curve = weight_noise_curve(
        view,
        IMAGES,
        labels,
        kind="gaussian",
        sizes=[0.5],
        draws=4,
        key=KEY,
        batch_size=4,
        masks=sparse,
    )
    again = weight_noise_curve(
        view,
        IMAGES,
        labels,
        kind="gaussian",
        sizes=[0.5],
        draws=2,
        key=KEY,
        batch_size=4,
        masks=sparse,
    )
    np.testing.assert_array_equal(curve.accuracies[:, :2], again.accuracies)
    assert len(set(curve.accuracies[0])) > 1


def test_no_draw_size_or_training_is_traced_anew(view, labels):
    def curves(view, sizes):
        for kind in ("gaussian", "worst_case"):
            weight_noise_curve(
                view, IMAGES, labels, kind=kind, sizes=sizes, draws=2, key=KEY, batch_size=4
            )

    curves(view, [0.1])
    traces = len(Net.traces)
    curves(View.of(Net(seed=1)), [0.2, 0.4])
    assert len(Net.traces) == traces


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, v: perturb_weights(p, "gausian", 0.1, KEY), "did you mean 'gaussian'"),
        (lambda p, v: perturb_weights(p, "gaussian", -0.1, KEY), "size=-0.1; expected a standard"),
        (
            lambda p, v: perturb_weights(p, "rms", 1, KEY, masks={"up/kernl": np.ones((6, 20))}),
            "a mask for 'up/kernl' fits no kernel; did you mean 'up/kernel'",
        ),
        (
            lambda p, v: perturb_weights(p, "rms", 1, KEY, masks={"up/kernel": np.ones((20, 6))}),
            r"the mask of 'up/kernel' has shape \(20, 6\), its kernel \(6, 20\)",
        ),
        (lambda p, v: perturb_weights({"bias": p["up/bias"]}, "rms", 1, KEY), "ends with 'kernel'"),
        (
            lambda p, v: worst_case_weights(v, IMAGES, LABELS, rho=5, key=KEY),
            "rho=5; expected a share of the norm",
        ),
        (lambda p, v: worst_case_weights(v, IMAGES, LABELS, rho=0.1, key=KEY, steps=0), "steps=0"),
        (
            lambda p, v: worst_case_weights(v, IMAGES, LABELS, rho=0.1, key=KEY, step_size=0.0),
            "step_size=0; expected a share of the radius",
        ),
        (
            lambda p, v: weight_noise_curve(v, IMAGES, LABELS, kind="rms", sizes=[], key=KEY),
            "draws=5, 0 sizes; expected 1 or more",
        ),
        (
            lambda p, v: weight_noise_curve(
                v, IMAGES, LABELS, kind="rms", sizes=[1], draws=0, key=KEY
            ),
            "draws=0, 1 sizes",
        ),
    ],
)
def test_what_cannot_be_perturbed_is_refused_in_one_line(view, call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call(view.params, view)
    assert "\n" not in str(caught.value)


def test_a_masked_view_is_perturbed_where_it_keeps_weights_whatever_weights_it_holds():
    dense = View.of(Net())
    keeps = np.random.default_rng(1).random((6, 20)) < 0.3
    masked = dense.masked({"up/kernel": jnp.asarray(keeps)})
    holds_dense = dataclasses.replace(masked, params=dense.params)
    found = worst_case_weights(
        holds_dense, IMAGES, LABELS, rho=0.1, key=KEY, steps=3, batch_size=10
    )["up/kernel"]
    start = np.asarray(dense.params["up/kernel"]) * keeps
    np.testing.assert_array_equal(np.asarray(found)[~keeps], 0)
    assert np.linalg.norm(found - start) <= 0.1 * np.linalg.norm(start) * (1 + 1e-5)
    curves = [
        weight_noise_curve(
            of,
            IMAGES,
            LABELS,
            kind="rms",
            sizes=[0.5, 2.0],
            key=KEY,
            draws=3,
            batch_size=10,
        ).accuracies
        for of in (holds_dense, masked)
    ]
    np.testing.assert_array_equal(*curves)
