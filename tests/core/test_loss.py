from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import Loss, UsageError, add_metrics, masked_mean


def uneven(seed: int, rate: float, shape=(3, 5)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(np.float32), rng.random(shape) < rate


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_masked_mean_is_the_mean_of_what_counts(rate, dtype):
    values, mask = uneven(0, rate)
    mask[0, 0] = True
    mean, weight = masked_mean(jnp.asarray(values), jnp.asarray(mask.astype(dtype)))
    np.testing.assert_allclose(mean, values[mask].mean(dtype=np.float64), rtol=1e-5)
    assert weight == mask.sum() and mean.dtype == weight.dtype == jnp.float32


def test_an_empty_mask_gives_zero_and_finite_gradients():
    values, mask = jnp.array([1.0, 2.0]), jnp.zeros(2, bool)
    (mean, weight), slope = masked_mean(values, mask), jax.grad(lambda v: masked_mean(v, mask)[0])
    assert (mean, weight) == (0, 0)
    assert slope(values).tolist() == [0, 0]


def test_values_outside_the_mask_do_not_matter():
    values, mask = jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([True, False, False])
    mean, slope = jax.value_and_grad(lambda v: masked_mean(v, mask)[0])(values)
    assert mean == 1 and slope.tolist() == [1, 0, 0]


def test_low_precision_values_are_averaged_in_float32():
    values = jnp.full(4097, 1.0, jnp.bfloat16)
    assert masked_mean(values, jnp.ones(4097, bool)) == (1, 4097)


def test_a_mask_that_would_broadcast_is_refused():
    with pytest.raises(UsageError, match=r"mask of shape \(3, 1\) for values of shape \(3, 5\)"):
        masked_mean(jnp.ones((3, 5)), jnp.ones((3, 1), bool))


def test_means_of_uneven_parts_combine_to_the_mean_of_all():
    parts = [uneven(seed, rate) for seed, rate in enumerate([0.2, 0.9, 0.0, 0.5])]
    sums = {}
    for values, mask in parts:
        sums = add_metrics(sums, {"loss": masked_mean(jnp.asarray(values), jnp.asarray(mask))})
    total, weight = sums["loss"]
    together = np.concatenate([values[mask] for values, mask in parts])
    np.testing.assert_allclose(total / weight, together.mean(dtype=np.float64), rtol=1e-5)
    assert weight == together.size


def test_metrics_that_a_part_lacks_keep_their_sums():
    sums = add_metrics({"a": (4.0, 2.0)}, {"b": (3.0, 5.0)})
    assert sums == {"a": (4.0, 2.0), "b": (15.0, 5.0)}
    assert add_metrics(sums, {"a": (1.0, 2.0)})["a"] == (6.0, 4.0)


def test_a_loss_passes_through_transformations():
    @jax.jit
    def objective(x):
        value, weight = masked_mean(x, jnp.ones_like(x))
        return Loss(value, weight, {"half": (value / 2, weight)}, carry={"h": x})

    loss = objective(jnp.array([1.0, 3.0]))
    assert isinstance(loss, Loss) and loss.value == 2 and loss.metrics["half"] == (1, 2)
    assert len(jax.tree.leaves(loss)) == 5
    stacked = jax.lax.map(objective, jnp.array([[1.0, 3.0], [5.0, 7.0]]))
    assert stacked.value.tolist() == [2, 6] and stacked.carry["h"].shape == (2, 2)
    assert jax.grad(lambda x: objective(x).value)(jnp.array([1.0, 3.0])).tolist() == [0.5, 0.5]


def test_a_loss_without_metrics_and_carry_has_two_leaves():
    assert jax.tree.leaves(Loss(1.0, 2.0)) == [1.0, 2.0]
