from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import core
from jaxlab.core import MeshConfig, UsageError, batch_sharding, make_mesh


@pytest.fixture(scope="module", params=[{"data": 8}, {"data": 2, "tensor": 4}, {"tensor": 8}])
def mesh(request):
    return make_mesh(MeshConfig(**{"data": 1} | request.param), jax.devices()[:8])


def test_a_single_process_has_every_row_and_counts_it(mesh):
    rows = core.local_rows(16, mesh)
    assert rows == tuple(range(16))
    assert core.owned_rows(rows).tolist() == [True] * 16


def test_rows_that_do_not_divide_are_refused():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), jax.devices()[:8])
    with pytest.raises(UsageError, match="batch_size=12 does not divide over 8 devices; .* of 8$"):
        core.local_rows(12, mesh)
    # The mesh that is named is one with which they do.
    mesh = make_mesh(MeshConfig(data=8), jax.devices()[:8])
    words = "batch_size=8 in accumulate=2 .* of 16, or set mesh.data=4 and mesh.tensor=2$"
    with pytest.raises(UsageError, match=words):
        core.require_rows(8, mesh, accumulate=2)
    core.require_rows(8, make_mesh(MeshConfig(data=4, tensor=2), jax.devices()[:8]), accumulate=2)


def test_rows_come_back_as_they_were_placed(mesh):
    x = np.arange(48).reshape(16, 3)
    placed = core.place_rows({"x": x}, batch_sharding(mesh))["x"]
    assert placed.sharding.is_equivalent_to(batch_sharding(mesh), 2)
    np.testing.assert_array_equal(core.fetch_local_rows(placed), x)


def test_whole_puts_everything_on_one_device(mesh):
    x = jax.device_put(jnp.arange(16.0), batch_sharding(mesh))
    (found,) = core.whole([x])
    assert len(found.sharding.device_set) == 1
    np.testing.assert_array_equal(found, np.arange(16.0))


def test_a_single_process_is_the_main_one_and_gathers_its_own_value():
    assert core.is_main_process() and core.num_processes() == 1
    assert core.gather({"a": [1]}) == [{"a": [1]}]


def test_an_error_of_the_main_process_is_raised():
    assert core.on_main_process(lambda: 3) == 3
    with pytest.raises(KeyError, match="lost"):
        core.on_main_process(lambda: {}["lost"])
