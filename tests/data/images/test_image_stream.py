from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import ImageSet, ImageStream, Prefetch, image_batches


def numbered(n):
    """Images whose levels are their number, labelled by its last digit."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, 2, 1))
    return ImageSet(images, np.arange(n) % 10, num_classes=10)


def take(stream, count):
    return list(itertools.islice(stream, count))


def joined(batches, name="index"):
    return np.concatenate([batch[name] for batch in batches])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 25])
def test_every_epoch_has_each_image_once_in_an_own_order(batch_size):
    seen = joined(take(ImageStream(numbered(10), batch_size), 30))
    epochs = seen[: len(seen) // 10 * 10].reshape(-1, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_rows_hold_what_their_index_says():
    images = numbered(100)
    for batch in take(ImageStream(images, 32), 8):
        assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
            "inputs": (np.uint8, (32, 3, 2, 1)),
            "targets": (np.int32, (32,)),
            "index": (np.int32, (32,)),
        }
        assert (batch["inputs"] == batch["index"][:, None, None, None]).all()
        assert (batch["targets"] == batch["index"] % 10).all()


def test_order_depends_on_the_seed_and_not_on_the_batch_size():
    first = joined(take(ImageStream(numbered(50), 5, seed=3), 20))
    other = joined(take(ImageStream(numbered(50), 20, seed=3), 5))
    np.testing.assert_array_equal(first, other)
    assert (first != joined(take(ImageStream(numbered(50), 5, seed=4), 20))).any()


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_together_make_the_rows_of_one(num_processes):
    rows = np.array_split(np.arange(6), num_processes)
    processes = [ImageStream(numbered(10), 6, seed=1, rows=mine.tolist()) for mine in rows]
    for whole in take(ImageStream(numbered(10), 6, seed=1), 7):
        parts = [next(process) for process in processes]
        for name, array in whole.items():
            np.testing.assert_array_equal(joined(parts, name), array)
    assert processes[0].state() == processes[1].state()


def test_restored_stream_equals_the_uninterrupted_one():
    whole = ImageStream(numbered(10), 4, seed=2)
    take(whole, 8)
    state = json.loads(json.dumps(whole.state()))
    resumed = ImageStream(numbered(10), 4, seed=2)
    take(resumed, 3)
    resumed.restore(state)
    np.testing.assert_array_equal(joined(take(resumed, 9)), joined(take(whole, 9)))


def test_state_of_other_images_seed_or_batch_size_is_refused():
    state = ImageStream(numbered(10), 4, seed=1).state()
    with pytest.raises(UsageError, match=r"seed=1 \(now 2\), batch_size=4 \(now 5\)"):
        ImageStream(numbered(10), 5, seed=2).restore(state)
    with pytest.raises(UsageError, match=r"images='\w{16}' \(now '\w{16}'\)"):
        ImageStream(numbered(10).take(range(9, -1, -1)), 4, seed=1).restore(state)


def test_stream_can_be_read_ahead_and_resumed():
    plain = ImageStream(numbered(10), 4)
    expected = take(plain, 6)
    with Prefetch(ImageStream(numbered(10), 4), size=3) as ahead:
        first = take(ahead, 3)
        state = ahead.state()
    resumed = ImageStream(numbered(10), 4)
    resumed.restore(state)
    np.testing.assert_array_equal(joined(first + take(resumed, 3)), joined(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; expected at least 1"),
        ({"batch_size": 4, "seed": -1}, "seed=-1; expected 0 or more"),
        ({"batch_size": 4, "rows": [2, 4]}, "expected rows of a batch of 4, ascending from 0 to 3"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        ImageStream(numbered(10), **arguments)


@pytest.mark.parametrize(("batch_size", "count"), [(4, 3), (5, 2), (16, 1)])
def test_a_pass_has_every_image_once_in_order_and_one_shape(batch_size, count):
    batches = image_batches(numbered(10), batch_size)
    assert len(batches) == count
    for _ in range(2):  # again and again
        made = list(batches)
        assert len(made) == count
        assert {batch["inputs"].shape for batch in made} == {(batch_size, 3, 2, 1)}
        mask = joined(made, "mask")
        assert mask.dtype == bool and mask.sum() == 10 and mask[:10].all()
        assert joined(made).tolist() == [*range(10), *[-1] * (count * batch_size - 10)]
        assert joined(made, "targets")[:10].tolist() == list(range(10))
        assert not joined(made, "targets")[10:].any() and not joined(made, "inputs")[10:].any()
        assert joined(made, "inputs")[:10, 0, 0, 0].tolist() == list(range(10))
        assert all(batch[k].dtype == np.int32 for batch in made for k in ("targets", "index"))


def test_a_pass_is_shared_by_processes():
    whole = list(image_batches(numbered(10), 4))
    processes = [list(image_batches(numbered(10), 4, rows=rows)) for rows in ([0, 1], [2, 3])]
    for batch, *parts in zip(whole, *processes, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(joined(parts, name), array)
