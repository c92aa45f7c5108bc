from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.core import (
    MESH_AXES,
    RULES,
    MeshConfig,
    UsageError,
    batch_sharding,
    constrain,
    make_mesh,
    map_shards,
    param_shardings,
    partition,
    use_mesh,
)

P = PartitionSpec


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as far as meshes look at it."""

    id: int
    slice_index: int | None = None
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "fake"


def chips(slices, per_slice, **kwargs):
    """Devices of several slices, shuffled."""
    made = [Chip(i, i // per_slice, **kwargs) for i in range(slices * per_slice)]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]


def slice_of(mesh):
    return np.vectorize(lambda chip: chip.slice_index)(mesh.devices)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, sequence=1, tensor=2))


def spec(axes, shape, mesh, rules=RULES):
    return partition(axes, shape, mesh, rules)[0]


def test_one_size_takes_what_the_others_leave():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}
    wide = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(wide.shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert set(wide.devices.flat) == set(jax.devices())


def test_all_axes_are_placed_by_the_compiler(mesh):
    assert mesh.axis_names == MESH_AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=1, tensor=4), "data=1.*tensor=4 does not fit 8 devices.* 4, which"),
        (MeshConfig(fsdp=3), "data=-1, fsdp=3.*does not fit 8 devices.* 3, which"),
        (MeshConfig(fsdp=16), "fsdp=16.*does not fit 8 devices"),
        (MeshConfig(fsdp=-1), "at most one -1, got data=-1, fsdp=-1"),
        (MeshConfig(tensor=0), "positive.*tensor=0"),
        (MeshConfig(data=-2), "positive.*data=-2"),
    ],
)
def test_sizes_that_do_not_fit_are_told(config, message):
    with pytest.raises(UsageError, match=message):
        make_mesh(config)


@pytest.mark.parametrize(
    ("sizes", "across"),
    [
        ({"data": 2, "tensor": 4}, 0),
        ({"data": 4, "sequence": 2}, 0),
        ({"data": 1, "fsdp": 4, "tensor": 2}, 1),
    ],
)
def test_the_outermost_axis_that_is_used_crosses_the_slow_network(sizes, across):
    found = slice_of(make_mesh(MeshConfig(**sizes), chips(2, 4)))
    half = found.shape[across] // 2
    first, second = np.split(found, [half], axis=across)
    assert (first == 0).all() and (second == 1).all()


def test_data_and_fsdp_share_the_slices_where_one_is_too_small():
    found = slice_of(make_mesh(MeshConfig(data=2, fsdp=4), chips(4, 2)))
    assert found[:, :, 0, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_hosts_of_several_devices_are_slices_where_devices_name_none():
    hosts = [Chip(i, None, i % 2) for i in range(8)]
    mesh = make_mesh(MeshConfig(data=2, tensor=4), hosts)
    assert [{chip.process_index for chip in row.flat} for row in mesh.devices] == [{0}, {1}]
    single = [Chip(i, None, i) for i in range(8)]
    assert make_mesh(MeshConfig(tensor=8, data=1), single).shape["tensor"] == 8


def test_slices_that_the_config_names_split_plain_devices_in_order():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2, slices=2))
    flat = make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2))
    assert mesh == flat and mesh.axis_types == flat.axis_types
    three = MeshConfig(data=1, fsdp=4, slices=2)
    assert [d.id for d in make_mesh(three, chips(1, 4)).devices.flat] == [
        chip.id for chip in chips(1, 4)
    ]


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (MeshConfig(data=1, tensor=8), chips(2, 4), "data=1.* 2 slices of 4 devices; make data a"),
        (MeshConfig(data=3, tensor=4), chips(2, 6), "data=3.*tensor=4 does not fit 2 slices"),
        (MeshConfig(), [*chips(2, 4)[:-1]], "the 2 slices have [34], [34] devices.*slices=1"),
        (MeshConfig(slices=3), chips(2, 4), "slices=3 does not divide 8 devices"),
        (MeshConfig(slices=0), chips(2, 4), "slices=0 does not divide 8 devices"),
    ],
)
def test_sizes_that_do_not_divide_over_slices_are_told(config, devices, message):
    with pytest.raises(UsageError, match=message) as error:
        make_mesh(config, devices)
    assert "\n" not in str(error.value)


def test_networks_can_be_taken_for_equal():
    mesh = make_mesh(MeshConfig(data=1, tensor=8, slices=1), chips(2, 4))
    assert mesh.shape["tensor"] == 8


@pytest.mark.parametrize(
    ("logical", "wanted"),
    [
        ("batch", ("data", "fsdp")),
        ("vocab", "tensor"),
        ("mlp", "tensor"),
        ("heads", "tensor"),
        ("embed", "fsdp"),
        ("length", None),
        ("nobody", None),
        (None, None),
    ],
)
def test_each_rule_shards_its_axis(mesh, logical, wanted):
    assert spec((None, logical), (3, 8), mesh) == P(None, wanted)


def test_length_goes_to_the_sequence_axis():
    long = make_mesh(MeshConfig(sequence=4))
    assert spec(("batch", "length", "embed"), (2, 8, 8), long) == P("data", "sequence", None)


def test_a_mesh_axis_is_used_once_and_by_the_first_rule(mesh):
    assert spec(("mlp", "vocab"), (8, 8), mesh) == P(None, "tensor")
    assert spec(("heads", "mlp"), (8, 8), mesh) == P(None, "tensor")
    assert spec(("embed", "embed"), (8, 8), mesh) == P("fsdp", None)
    assert spec(("embed", "batch"), (8, 8), mesh) == P(None, ("data", "fsdp"))


def test_an_axis_that_does_not_divide_leaves_its_mesh_axis_to_others(mesh):
    assert partition(("vocab", "mlp"), (7, 8), mesh) == (P(None, "tensor"), [("vocab", 7, 2)])


def test_a_later_rule_for_the_same_axis_is_tried_where_the_first_does_not_fit(mesh):
    rules = (("batch", ("data", "fsdp")), ("batch", ("data",)))
    assert partition(("batch",), (2,), mesh, rules) == (P("data"), [])
    assert partition(("batch",), (3,), mesh, rules)[1] == [("batch", 3, 2)]


def test_a_dimension_that_is_sharded_stays_so(mesh):
    rules = (("mlp", ("tensor",)), ("mlp", ("data",)))
    assert spec(("mlp", "mlp"), (8, 8), mesh, rules) == P("tensor", "data")


def test_a_stacked_axis_on_the_left_is_replicated(mesh):
    assert spec(("embed", "mlp"), (6, 8, 8), mesh) == P(None, "fsdp", "tensor")
    assert spec(None, (6, 8), mesh) == P(None, None)


def test_more_axes_than_dimensions_are_refused(mesh):
    with pytest.raises(UsageError, match=r"\('embed', 'mlp'\) name more dimensions than .*\(8,\)"):
        partition(("embed", "mlp"), (8,), mesh)


def test_axes_of_a_mesh_that_has_only_some_are_skipped():
    small = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    assert spec(("batch", "mlp"), (8, 8), small) == P("data", None)


def test_parameters_get_shardings_and_notes(mesh):
    params = {"a/kernel": jnp.ones((4, 6)), "a/bias": jax.ShapeDtypeStruct((7,), jnp.float32)}
    shardings, notes = param_shardings(
        params, {"a/kernel": ("embed", "mlp"), "a/bias": ("mlp",)}, mesh
    )
    assert {path: s.spec for path, s in shardings.items()} == {
        "a/kernel": P("fsdp", "tensor"),
        "a/bias": P(None),
    }
    assert notes == ["a/bias: axis 'mlp' of size 7 does not divide by 2"]
    placed = jax.device_put(params["a/kernel"], shardings["a/kernel"])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_strict_names_parameter_axis_and_sizes(mesh):
    with pytest.raises(UsageError, match="^b/kernel: axis 'vocab' of size 33 does not .* by 2;"):
        param_shardings({"b/kernel": jnp.ones(33)}, {"b/kernel": ("vocab",)}, mesh, strict=True)
    param_shardings({"b/kernel": jnp.ones(34)}, {"b/kernel": ("vocab",)}, mesh, strict=True)


def test_a_batch_is_sharded_over_data_and_fsdp(mesh):
    placed = jax.device_put(jnp.ones((8, 3)), batch_sharding(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", "embed") is x


def test_constrain_places_activations_by_the_rules(mesh):
    double = jax.jit(lambda x: constrain(2 * x, "batch", None, "mlp"))
    x = np.arange(64.0, dtype=np.float32).reshape(4, 2, 8)
    with use_mesh(mesh):
        placed = double(x)
    wanted = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    assert placed.sharding.is_equivalent_to(wanted, 3)
    assert np.array_equal(placed, 2 * x)


def test_constrain_takes_the_rules_of_the_context(mesh):
    with use_mesh(mesh, (("mlp", ("fsdp",)),)):
        placed = jax.jit(lambda x: constrain(2 * x, "batch", "mlp"))(jnp.ones((4, 8)))
    assert placed.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "fsdp")), 2)
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: constrain(2 * x, "batch", "mlp"))(jnp.ones((4, 8)))
    assert placed.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), "tensor")), 2)


def test_constrain_leaves_manual_axes_alone(mesh):
    inner = jax.shard_map(
        lambda x: constrain(2 * x, "batch", "mlp"),
        mesh=mesh,
        in_specs=P(("data", "fsdp")),
        out_specs=P(("data", "fsdp")),
        axis_names={"data", "fsdp"},
    )
    with use_mesh(mesh):
        assert np.array_equal(jax.jit(inner)(jnp.ones((16, 8))), 2 * np.ones((16, 8)))


def test_a_function_of_shards_sees_the_parts_of_one_device_and_its_gradient_all(mesh):
    seen = []

    def scaled(x, scale):
        seen.append((x.shape, scale.shape))
        return x * scale[None]

    run = map_shards(scaled, ("batch", "heads"), ("heads",))
    x, scale = jnp.arange(24.0).reshape(8, 3), jnp.array([1.0, 2.0, 3.0])
    even, half = jnp.arange(32.0).reshape(8, 4), jnp.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(run(x, scale), x * scale[None])
    assert seen.pop() == ((8, 3), (3,))
    with use_mesh(mesh):
        for value, by, part in ((x, scale, ((2, 3), (3,))), (even, half, ((2, 2), (2,)))):
            loss = jax.jit(jax.grad(lambda v, s: (run(v, s) * v).sum(), argnums=(0, 1)))
            got = loss(value, by)
            assert seen[-1] == part
            np.testing.assert_allclose(got[0], 2 * value * by[None])
            np.testing.assert_allclose(got[1], (value * value).sum(axis=0))


def test_a_function_of_shards_runs_where_some_axes_are_manual_already(mesh):
    def part(x):
        assert x.shape == (2, 2)
        return 2 * x

    inner = map_shards(part, ("batch", "heads"))
    outer = jax.shard_map(
        lambda x: inner(x) + 1,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        axis_names={"data"},
        check_vma=False,
    )
    with use_mesh(mesh):
        assert np.array_equal(jax.jit(outer)(jnp.ones((8, 4))), np.full((8, 4), 3))


def test_constrain_wants_every_dimension_named_even_without_a_mesh():
    with pytest.raises(UsageError, match=r"got 1 axes \('batch',\) for shape \(2, 3\)"):
        constrain(jnp.ones((2, 3)), "batch")


def test_one_device_is_a_mesh_of_one():
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert spec(("embed", "mlp"), (7, 9), one) == P(None, None)
    shardings, notes = param_shardings({"w": jnp.ones((7, 9))}, {"w": ("embed", "mlp")}, one)
    assert notes == [] and shardings["w"].is_fully_replicated
    with use_mesh(one):
        out = jax.jit(lambda x: constrain(x + 1, "batch", "embed"))(jnp.ones((3, 5)))
    assert out.tolist() == (np.ones((3, 5)) + 1).tolist()
    assert jax.device_put(jnp.ones((3, 2)), batch_sharding(one)).shape == (3, 2)
