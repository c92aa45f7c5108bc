from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import UsageError, View
from jaxlab.data import RecallTask
from jaxlab.evals import accuracy_by_block

TASK = RecallTask(block=8, num_blocks=5)


class Oracle(nnx.Module):
    """Knows the value of block 0 as far as `reach` positions on; answers 0 beyond."""

    def __init__(self, reach: int):
        self.reach = reach

    def __call__(self, tokens_bt, carry, start_bt):
        answer_b = jnp.where(tokens_bt < TASK.num_values, tokens_bt, -1)[:, :8].max(axis=1)
        near_t = jnp.arange(tokens_bt.shape[1]) < self.reach
        answer_bt = jnp.where(near_t, answer_b[:, None], 0)
        return jax.nn.one_hot(answer_bt, TASK.vocab_size), carry


def test_accuracy_is_that_of_each_block():
    batch = TASK.batch(seed=0, index=0, batch_size=64)
    found = accuracy_by_block(Oracle(reach=24), batch, TASK.block)
    of_view = accuracy_by_block(View.of(Oracle(reach=24)), batch, TASK.block)
    np.testing.assert_array_equal(of_view, found)
    late = batch["mask"] & (batch["position"] >= 24)
    zeros = (batch["targets"][late] == 0).mean()
    assert np.isnan(found[0]) and found[1:3].tolist() == [1.0, 1.0]
    assert found[3:].mean() == pytest.approx(zeros) and 0 < zeros < 0.2


def test_a_block_that_does_not_divide_the_sequence_is_refused():
    batch = TASK.batch(seed=0, index=0, batch_size=2)
    with pytest.raises(UsageError, match="block=7; expected a divisor of the sequence"):
        accuracy_by_block(Oracle(reach=8), batch, 7)
