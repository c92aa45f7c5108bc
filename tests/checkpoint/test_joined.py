from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab.checkpoint import joined as room
from jaxlab.checkpoint.contents import checksums
from jaxlab.checkpoint.joined import join, joined_paths, split, targets


@pytest.fixture
def leaves(eight):
    """Arrays of two items on eight devices: whole and sharded, small and large, of four dtypes."""

    def place(x, *axes):
        return jax.device_put(x, NamedSharding(eight, P(*axes)))

    return {
        "params/a": place(jnp.arange(6.0).reshape(2, 3)),
        "params/b": place(jnp.arange(8.0), "data"),
        "params/c": place(jnp.asarray(7.5)),
        "params/d": place(jnp.ones(3, jnp.bfloat16)),
        "params/large": place(jnp.arange(100.0)),
        "train/key": place(jax.random.key(3)),
        "train/on": place(jnp.asarray([True, False])),
        "train/step": place(jnp.asarray(4)),
    }


def test_small_arrays_that_are_whole_everywhere_go_together_and_come_back(leaves, monkeypatch):
    monkeypatch.setattr(room, "SMALL", 400)
    together = joined_paths(leaves)
    assert together == {
        "params/joined:float32": ["params/a", "params/c"],
        "params/joined:bfloat16": ["params/d"],
        "train/joined:bool": ["train/on"],
        "train/joined:int32": ["train/step"],
    }
    saved = join(leaves, together)
    assert set(saved) == {*together, "params/b", "params/large", "train/key"}
    assert saved["params/large"] is leaves["params/large"]
    wanted = targets(leaves, together)
    assert {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in saved.items()}
    back = split(saved, leaves, together)
    assert set(back) == set(leaves)
    for path, leaf in leaves.items():
        assert back[path].dtype == leaf.dtype and back[path].sharding == leaf.sharding
    del back["train/key"]
    for path, array in back.items():
        np.testing.assert_array_equal(array, leaves[path])


def test_checksums_do_not_depend_on_sharding(leaves):
    """Each is the sum of the bits as unsigned numbers of the array's width, modulo 2**32."""

    def bits_sum(x):
        x = np.asarray(jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x)
        x = x if x.dtype == bool else x.view(f"uint{8 * x.itemsize}")
        return sum(map(int, x.ravel())) % 2**32

    assert checksums(leaves) == {path: bits_sum(leaf) for path, leaf in leaves.items()}


def test_one_item_comes_back_without_the_others(leaves):
    together = joined_paths(leaves)
    saved = join(leaves, together)
    alone = {path: leaf for path, leaf in leaves.items() if path.startswith("train/")}
    read = {path: saved[path] for path in targets(alone, together)}
    assert set(split(read, alone, together)) == set(alone)
