from __future__ import annotations

import json

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import RecallTask

TASKS = [RecallTask(), RecallTask(num_pairs=4, queries_per_block=8, num_blocks=3)]


def same(a, b):
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_target_of_each_query_is_the_value_paired_in_the_first_block(task):
    batch = task.batch(seed=0, index=0, batch_size=32)
    query = task.vocab_size - 1
    first_key = task.num_values
    for inputs, targets, mask in zip(batch["inputs"], batch["targets"], batch["mask"], strict=True):
        head = inputs[: task.block].reshape(-1, 2)
        pairs = {k: v for k, v in head if v < task.num_values}
        assert len(pairs) == task.num_pairs
        assert all(first_key <= k < first_key + task.num_keys for k in pairs)
        at = np.flatnonzero(mask)
        assert (inputs[at - 1] == query).all()
        assert [pairs[k] for k in inputs[at]] == targets[at].tolist()


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_never_part_of_the_input_after_the_first_block(task):
    inputs = task.batch(seed=1, index=0, batch_size=32)["inputs"]
    assert (inputs[:, task.block :] >= task.num_values).all()
    assert ((inputs[:, : task.block] < task.num_values).sum(axis=1) == task.num_pairs).all()


@pytest.mark.parametrize("task", TASKS)
def test_every_block_but_the_first_has_its_queries_at_even_slots(task):
    batch = task.batch(seed=2, index=0, batch_size=16)
    blocks = batch["mask"].reshape(16, task.num_blocks, task.block)
    assert (blocks.sum(axis=2)[:, 1:] == task.queries_per_block).all()
    assert not blocks[:, 0].any()
    assert (batch["position"][batch["mask"]] % 2 == 1).all()
    np.testing.assert_array_equal(
        batch["inputs"] == task.vocab_size - 1, np.roll(batch["mask"], -1, axis=1)
    )


def test_arrays_have_the_keys_of_a_text_batch():
    task = RecallTask()
    batch = task.batch(seed=0, index=0, batch_size=4)
    kinds = {name: (array.dtype, array.shape) for name, array in batch.items()}
    shape = (4, 96)
    assert kinds == {
        "inputs": (np.int32, shape),
        "targets": (np.int32, shape),
        "mask": (np.bool_, shape),
        "start": (np.bool_, shape),
        "position": (np.int32, shape),
    }
    assert task.vocab_size == 41 and batch["inputs"].max() == 40
    assert batch["start"][:, 0].all() and batch["start"].sum() == 4
    assert batch["position"][2].tolist() == list(range(96))


def test_values_are_even_and_slots_move():
    task = RecallTask()
    batch = task.batch(seed=0, index=0, batch_size=4000)
    answers = batch["targets"][batch["mask"]].reshape(4000, -1)[:, 0]
    counts = np.bincount(answers, minlength=16)
    assert counts.min() > 180 and counts.max() < 330
    assert (batch["mask"][:, 17::2].mean(axis=0) > 0.3).all()


def test_longer_sequences_are_made_for_evaluation():
    batch = RecallTask().batch(seed=0, index=0, batch_size=2, num_blocks=24)
    assert batch["inputs"].shape == (2, 24 * 16)
    assert batch["mask"].reshape(2, 24, 16).sum(axis=2)[:, 1:].tolist() == [[3] * 23] * 2


def test_batch_depends_only_on_seed_and_number():
    task = RecallTask()
    stream = task.stream(batch_size=4, seed=5)
    batches = [next(stream) for _ in range(3)]
    same(batches[2], task.batch(seed=5, index=2, batch_size=4))
    assert (batches[0]["inputs"] != batches[1]["inputs"]).any()
    other = task.batch(seed=6, index=0, batch_size=4)
    assert (batches[0]["inputs"] != other["inputs"]).any()


def test_restored_stream_equals_the_uninterrupted_one():
    task = RecallTask()
    whole = task.stream(batch_size=2, seed=1)
    next(whole), next(whole)
    resumed = task.stream(batch_size=2, seed=1)
    resumed.restore(json.loads(json.dumps(whole.state())))
    for _ in range(3):
        same(next(resumed), next(whole))


def test_state_of_another_stream_is_refused():
    state = RecallTask().stream(batch_size=2, seed=1).state()
    with pytest.raises(UsageError, match=r"num_pairs=1 \(now 2\), seed=1 \(now 0\)"):
        RecallTask(num_pairs=2).stream(batch_size=2, seed=0).restore(state)


def test_processes_together_make_the_rows_of_one():
    task = RecallTask()
    parts = [next(task.stream(batch_size=4, seed=3, rows=[2 * h, 2 * h + 1])) for h in range(2)]
    whole = next(task.stream(batch_size=4, seed=3))
    same(whole, {name: np.concatenate([p[name] for p in parts]) for name in whole})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_pairs": 9}, "num_pairs=9; expected at most num_keys = 8"),
        ({"num_pairs": 4, "block": 6}, "num_pairs=4; expected at most block // 2 = 3"),
        ({"queries_per_block": 9}, "queries_per_block=9; expected at most block // 2 = 8"),
        ({"num_blocks": 1}, "num_blocks=1; expected at least 2"),
        ({"num_values": 0}, "num_values=0; expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(UsageError, match=message):
        RecallTask(**sizes)
