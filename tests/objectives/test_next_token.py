from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.objectives import next_token, token_nats

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
BATCH = {
    "inputs": jnp.array([[0, 1, 2], [3, 4, 0]]),
    "targets": jnp.array([[1, 2, 3], [4, 0, 1]]),
    "mask": jnp.array([[True, True, False], [False, True, True]]),
    "start": jnp.array([[True, False, False], [False, True, False]]),
}


def nats(logits, targets):
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(shares, np.asarray(targets)[..., None], -1)[..., 0])


def model(tokens_bt, carry, start_bt, *, key):
    """Fixed logits; hands back what it was given."""
    return jnp.asarray(LOGITS), (tokens_bt, carry, start_bt, key)


def test_loss_is_the_mean_over_the_tokens_that_count():
    loss = next_token(model, BATCH)
    mask = np.asarray(BATCH["mask"])
    np.testing.assert_allclose(loss.value, nats(LOGITS, BATCH["targets"])[mask].mean(), rtol=1e-6)
    assert loss.weight == 4
    hits = (LOGITS.argmax(-1) == np.asarray(BATCH["targets"]))[mask]
    mean, weight = loss.metrics["accuracy"]
    assert (mean, weight) == (hits.mean(), 4)


def test_weighted_losses_of_parts_make_that_of_the_whole():
    rows = [
        next_token(
            lambda *_, row=row, **__: (jnp.asarray(LOGITS[row : row + 1]), None),
            {name: x[row : row + 1] for name, x in BATCH.items()},
        )
        for row in range(2)
    ]
    whole = next_token(model, BATCH)
    total = sum(loss.value * loss.weight for loss in rows)
    np.testing.assert_allclose(total / sum(loss.weight for loss in rows), whole.value, rtol=1e-6)


def test_a_batch_in_which_nothing_counts_has_no_weight_and_no_gradient():
    batch = {**BATCH, "mask": jnp.zeros((2, 3), bool)}

    def value(logits):
        loss = next_token(lambda *_, **__: (logits, None), batch)
        return loss.value, loss.weight

    (mean, weight), grad = jax.value_and_grad(value, has_aux=True)(jnp.asarray(LOGITS))
    assert mean == weight == 0 and (grad == 0).all()


def test_the_model_gets_starts_carry_and_key_and_gives_the_carry():
    loss = next_token(model, BATCH, "before", "key")
    tokens, carry, start, key = loss.carry
    assert tokens is BATCH["inputs"] and start is BATCH["start"]
    assert (carry, key) == ("before", "key")


def test_nats_of_low_precision_logits_are_computed_in_float32():
    got = token_nats(jnp.asarray(LOGITS, jnp.bfloat16), BATCH["targets"])
    want = nats(np.asarray(jnp.asarray(LOGITS, jnp.bfloat16), np.float32), BATCH["targets"])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)
