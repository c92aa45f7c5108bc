from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import kstest

from jaxlab.core import MeshConfig, UsageError, View, make_mesh
from jaxlab.evals import attack_accuracy, fgsm, pgd, predict, random_search

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((12, 2, 3, 2)).astype(np.float32)
LEVELS = RNG.integers(0, 256, IMAGES.shape, dtype=np.uint8)
LABELS = np.arange(12) % 2
SIGNS = np.where(LABELS == 1, 1, -1).reshape(-1, 1, 1, 1)
BATCH = {"inputs": IMAGES, "targets": LABELS}


class Line(nnx.Module):
    """Logits (0, w x): label 1 where w x is above 0."""

    def __init__(self, scale: float = 1.0):
        w = np.random.default_rng(1).normal(size=(12, 1)) * scale
        self.kernel = nnx.Param(jnp.asarray(w, jnp.float32))

    def __call__(self, x_bhwc):
        score_b1 = x_bhwc.reshape(len(x_bhwc), -1) @ self.kernel[...]
        return jnp.concatenate([jnp.zeros_like(score_b1), score_b1], axis=1)


class Net(nnx.Module):
    """A wavy net with batch normalisation; counts how often it is traced."""

    traces: list = []

    def __init__(self, seed: int = 0, classes: int = 3):
        rngs = nnx.Rngs(seed)
        self.up, self.norm = nnx.Linear(12, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.down = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x_bhwc):
        Net.traces.append(x_bhwc.shape)
        hidden_bd = self.norm(3 * self.up(x_bhwc.reshape(len(x_bhwc), -1)))
        return 3 * self.down(jnp.sin(hidden_bd))


@pytest.fixture(scope="module")
def line() -> View:
    return View.of(Line())


@pytest.fixture(scope="module")
def net() -> View:
    return View.of(Net())


def weights(view: View) -> np.ndarray:
    return np.asarray(view.params["kernel"]).reshape(IMAGES.shape[1:])


def norms(delta: np.ndarray, norm: str) -> np.ndarray:
    rows = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.abs(rows).max(axis=1) if norm == "linf" else np.sqrt((rows**2).sum(axis=1))


def close(a, b, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.4, 1.0])
def test_a_line_is_attacked_against_the_sign_of_its_weights(line, eps):
    expected = np.clip(IMAGES - eps * SIGNS * np.sign(weights(line)), 0, 1)
    close(fgsm(line, eps)(KEY, BATCH), expected)
    close(pgd(line, eps)(KEY, BATCH), expected)
    close(pgd(line, eps, random_start=False)(KEY, BATCH), expected)


def test_levels_are_attacked_as_numbers(line):
    expected = np.clip(LEVELS / 255 - 0.1 * SIGNS * np.sign(weights(line)), 0, 1)
    close(fgsm(line, 0.1)(KEY, {"inputs": LEVELS, "targets": LABELS}), expected)


def test_a_line_is_attacked_along_its_weights_in_l2(line):
    inner = 0.5 + 0.1 * (IMAGES - 0.5)  # the box is not reached
    w = weights(line)
    expected = inner - 0.3 * SIGNS * w / np.sqrt((w**2).sum())
    batch = {"inputs": inner, "targets": LABELS}
    close(pgd(line, 0.3, "l2", random_start=False)(KEY, batch), expected)
    close(pgd(line, 0.3, "l2", step_size=0.3)(KEY, batch), expected, 1e-5)


def test_a_targeted_attack_goes_to_the_target(line, net):
    # Leaving label 0 of two and going to label 1 are one and the same.
    left = {"inputs": IMAGES, "targets": 1 - LABELS}
    for norm in ("linf", "l2"):
        away, to = (
            pgd(line, 0.1, norm, targeted=targeted)(KEY, batch)
            for targeted, batch in ((False, BATCH), (True, left))
        )
        close(to, np.asarray(away))
    close(fgsm(line, 0.1, targeted=True)(KEY, left), np.asarray(fgsm(line, 0.1)(KEY, BATCH)))
    clean = predict(net, IMAGES, LABELS, batch_size=12)
    targets = np.full(12, 2)
    moved = attack_accuracy(
        net, pgd(net, 0.3, targeted=True), IMAGES, LABELS, targets=targets, key=KEY, batch_size=12
    )
    assert moved.labels.tolist() == LABELS.tolist()
    hits = [(p.logits.argmax(1) == 2).mean() for p in (clean, moved)]
    assert hits[0] < 0.6 and hits[1] > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.0, 0.02, 0.3, 1.0])
def test_attacked_images_lie_in_ball_and_box(net, norm, eps):
    for attack in (pgd(net, eps, norm, restarts=3), random_search(net, eps, norm)):
        found = np.asarray(attack(KEY, BATCH))
        assert found.dtype == np.float32 and found.shape == IMAGES.shape
        assert found.min() >= 0 and found.max() <= 1
        assert norms(found - IMAGES, norm).max() <= eps + 1e-6
        if not eps:
            np.testing.assert_array_equal(found, IMAGES)
        else:
            assert norms(found - IMAGES, norm).min() > 0


def test_starts_are_uniform_in_the_ball(line):
    grey = np.full((2000, 2, 3, 2), 0.5, np.float32)
    batch = {"inputs": grey, "targets": np.zeros(2000, int)}
    start = np.asarray(random_search(line, 0.25, "linf", draws=1)(KEY, batch)) - 0.5
    assert kstest(start.ravel(), "uniform", (-0.25, 0.5)).pvalue > 0.01
    start = np.asarray(random_search(line, 0.25, "l2", draws=1)(KEY, batch)) - 0.5
    # The share of the volume within a radius r of 12 numbers is (r / eps)^12.
    assert kstest((norms(start, "l2") / 0.25) ** 12, "uniform").pvalue > 0.01
    np.testing.assert_allclose(start.mean(axis=0), 0, atol=5 * 0.25 / np.sqrt(12 * 2000))


def test_an_image_is_attacked_alike_in_every_batch_and_order(net):
    attack = pgd(net, 0.1, steps=3)
    whole = np.asarray(attack(KEY, BATCH))
    order = RNG.permutation(12)
    part = {"inputs": IMAGES[order], "targets": LABELS[order], "index": order}
    close(attack(KEY, part), whole[order])
    parts = [
        attack(KEY, {name: x[i : i + 4] for name, x in ({**BATCH, "index": np.arange(12)}).items()})
        for i in range(0, 12, 4)
    ]
    close(np.concatenate(parts), whole)
    np.testing.assert_array_equal(attack(KEY, BATCH), whole)
    other = np.asarray(attack(jax.random.key(1), BATCH))
    assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.5
    small, large = (
        attack_accuracy(net, attack, IMAGES, LABELS, key=KEY, batch_size=size) for size in (5, 12)
    )
    close(small.logits, large.logits, 1e-4)


def test_restarts_never_help_less(net):
    labels = predict(net, IMAGES, LABELS, batch_size=12).logits.argmax(1)
    batch = {"inputs": IMAGES, "targets": labels}
    best_wrong, best_loss = np.zeros(12, bool), np.full(12, -np.inf)
    for restarts in (1, 2, 6):
        found = pgd(net, 0.04, steps=2, restarts=restarts)(KEY, batch)
        logits = np.asarray(net.evaluating()(found), np.float64)
        of_label = logits[np.arange(12), labels]
        loss = np.log(np.exp(logits).sum(axis=1)) - of_label
        wrong = logits.argmax(1) != labels
        assert (wrong >= best_wrong).all()
        assert (loss >= best_loss - 1e-5)[wrong == best_wrong].all()
        best_wrong, best_loss = wrong, loss
    assert 0 < best_wrong.mean()


def test_rows_are_attacked_in_evaluation_mode(net):
    alone = pgd(net.training(), 0.1, random_start=False)(KEY, {n: x[:1] for n, x in BATCH.items()})
    close(alone, np.asarray(pgd(net.training(), 0.1, random_start=False)(KEY, BATCH))[:1], 1e-5)
    # Of other running statistics the attack is another.
    state = {path: s + 2.0 for path, s in net.state.items()}
    attack = pgd(net, 0.1, random_start=False)
    other = dataclasses.replace(attack, view=net.at(net.params, state))
    assert np.abs(np.asarray(other(KEY, BATCH) - attack(KEY, BATCH))).max() > 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_model_that_is_sure_is_attacked_all_the_same(norm):
    sure = View.of(Line(scale=1e4))
    plain = View.of(Line())
    right = {"inputs": IMAGES, "targets": predict(plain, IMAGES, LABELS).logits.argmax(1)}
    # The cross-entropy, and its gradient, are 0 in float32.
    assert float(jax.nn.softplus(-jnp.abs(sure(IMAGES)[:, 1])).max()) == 0
    close(pgd(sure, 0.1, norm)(KEY, right), np.asarray(pgd(plain, 0.1, norm)(KEY, right)), 1e-5)


def test_one_program_serves_all_attacks_in_a_norm_on_trainings_of_one_config():
    view = View.of(Net())
    pgd(view, 0.1)(KEY, BATCH)
    attack_accuracy(view, pgd(view, 0.1), IMAGES, LABELS, key=KEY, batch_size=12)
    traces = len(Net.traces)
    for attack in (
        fgsm(view, 0.2),
        pgd(view, 0.3, steps=7, restarts=2),
        pgd(view, 0.1, targeted=True),
        pgd(view, 0.1, random_start=False),
        random_search(view, 0.1),
    ):
        attack(KEY, BATCH)
    for other in (view.at({path: 2 * p for path, p in view.params.items()}), View.of(Net(seed=1))):
        pgd(other, 0.1)(KEY, BATCH)
        attack_accuracy(other, fgsm(other, 0.1), IMAGES, LABELS, key=KEY, batch_size=12)
    assert len(Net.traces) == traces


def test_a_model_is_attacked_as_its_view(line):
    flipped = line.at({"kernel": -line.params["kernel"]})
    expected = np.clip(IMAGES + 0.1 * SIGNS * np.sign(weights(line)), 0, 1)
    for model in (flipped, flipped.model()):
        close(fgsm(model, 0.1)(KEY, BATCH), expected)
    with pytest.raises(UsageError, match="expected an nnx.Module or a View of one, got dict"):
        fgsm(flipped.params, 0.1)
    model = flipped.model()
    found = attack_accuracy(model, fgsm(model, 0.1), IMAGES, LABELS, key=KEY)
    close(found.logits[:, 1], -(expected * weights(line)).sum(axis=(1, 2, 3)), 1e-5)


def test_a_transfer_attack_is_made_on_one_model_and_predicted_by_another(line):
    other = View.of(Net(seed=1, classes=2))
    found = attack_accuracy(other, pgd(line, 0.2), IMAGES, LABELS, key=KEY, batch_size=4)
    attacked = np.clip(IMAGES - 0.2 * SIGNS * np.sign(weights(line)), 0, 1)
    close(found.logits, predict(other, attacked, LABELS, batch_size=4).logits, 1e-5)


def test_shards_are_attacked_as_one_device(net):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    batch = {"inputs": IMAGES[:8], "targets": LABELS[:8]}
    attack = pgd(net, 0.1, steps=3, restarts=2)
    sharded = dataclasses.replace(attack, view=net.on(mesh))
    found = sharded(KEY, batch)
    assert len(found.sharding.device_set) == 8 and not found.is_fully_replicated
    close(found, np.asarray(attack(KEY, batch)), 1e-5)
    one, eight = (
        attack_accuracy(of.view, of, IMAGES, LABELS, key=KEY, batch_size=8)
        for of in (attack, sharded)
    )
    close(eight.logits, one.logits, 1e-4)
    # The view that predicts says where: the model under attack is moved there.
    moved = attack_accuracy(sharded.view, attack, IMAGES, LABELS, key=KEY, batch_size=8)
    close(moved.logits, one.logits, 1e-4)
    with pytest.raises(UsageError, match="batch_size=12 does not divide over 8 devices"):
        sharded(KEY, BATCH)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: pgd(v, 8), "eps=8 in linf is beyond .* 8 looks like levels, write 8 / 255"),
        (lambda v: fgsm(v, 1.5), "eps=1.5 in linf is beyond"),
        (lambda v: fgsm(v, -0.1), "eps=-0.1; expected 0 or more"),
        (lambda v: pgd(v, float("nan")), "eps=nan; expected 0 or more"),
        (lambda v: pgd(v, 0.1, "l1"), "norm='l1'; expected one of linf, l2"),
        (lambda v: pgd(v, 0.1, steps=0), "steps=0; expected 1 or more"),
        (lambda v: pgd(v, 0.1, step_size=-1), "step_size=-1; expected a length above 0"),
        (lambda v: pgd(v, 0.1, restarts=0), "restarts=0; expected 1 or more"),
        (lambda v: pgd(v, 0.1, random_start=False, restarts=2), "restarts=2 without random_start"),
        (
            lambda v: pgd(v, 128, "l2")(KEY, BATCH),
            "eps=128 in l2 is beyond any change of a 2x3x2 image .* at most 3.464: 128 looks like",
        ),
        (lambda v: fgsm(v, 0.1)(KEY, {**BATCH, "targets": LABELS + 1}), "label 2 of example 1"),
        (lambda v: fgsm(v, 0.1)(KEY, {**BATCH, "inputs": 255 * IMAGES}), "float images from"),
        (
            lambda v: attack_accuracy(v, fgsm(v, 0.1, targeted=True), IMAGES, LABELS, key=KEY),
            "a targeted attack needs targets",
        ),
        (
            lambda v: attack_accuracy(v, fgsm(v, 0.1), IMAGES, LABELS, key=KEY, targets=LABELS),
            "targets are for a targeted attack",
        ),
        (
            lambda v: attack_accuracy(v, fgsm(v, 0.1), IMAGES, LABELS + 1, key=KEY),
            "label 2 of example 1 is out of range; expected 0 to 1",
        ),
    ],
)
def test_what_is_no_attack_is_refused_in_one_line(line, make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make(line)
    assert "\n" not in str(caught.value)


def test_the_largest_radii_are_accepted(line):
    corner = np.where(SIGNS * np.sign(weights(line)) > 0, 0.0, 1.0)
    close(pgd(line, 1.0)(KEY, BATCH), corner)
    pgd(line, np.sqrt(12), "l2")(KEY, BATCH)
