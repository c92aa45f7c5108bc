"""Compiled programs read back: FLOPs, loops and collectives against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.core import MeshConfig, make_mesh
from jaxlab.planning.collectives import _axes, _groups, collectives
from jaxlab.planning.hlo import Instruction, read_program


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])


def compiled(mesh, function, *arguments):
    """The program of `function` on shapes `(shape, spec)`."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in arguments
    ]
    return read_program(jax.jit(function).lower(*shapes).compile().as_text())


def P(*axes):
    return PartitionSpec(*axes)


def test_flops_of_a_product_are_two_for_each_pair():
    text = jax.jit(jnp.matmul).lower(jnp.ones((8, 16)), jnp.ones((16, 32))).compile().as_text()
    assert read_program(text).flops == 2 * 8 * 16 * 32


KERNEL = """
HloModule m

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  ROOT %k = f32[8,16]{1,0} custom-call(%x, %x), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUz","cost_estimate":{"flops":"4096", \
"transcendentals":"7","bytes_accessed":"9"}}}
}
"""


def test_a_kernel_counts_for_what_it_says_and_what_it_is_given():
    program = read_program(KERNEL)
    assert program.flops == program.kernel_flops == 4096
    assert program.traffic == 3 * 4 * 8 * 16


def test_a_loop_counts_as_often_as_it_runs():
    def repeated(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    program = read_program(
        jax.jit(repeated).lower(jnp.ones((8, 16)), jnp.ones((16, 16))).compile().as_text()
    )
    assert program.unknown_loops == 0
    assert program.flops == 7 * 2 * 8 * 16 * 16


def test_loops_in_loops_multiply():
    def twice(x, w):
        def inner(x, _):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0], None

        return jax.lax.scan(inner, x, None, length=5)[0]

    text = jax.jit(twice).lower(jnp.ones((4, 8)), jnp.ones((8, 8))).compile().as_text()
    assert read_program(text).flops == 15 * 2 * 4 * 8 * 8


def test_traffic_of_one_addition_is_its_arrays():
    text = jax.jit(jnp.add).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile().as_text()
    assert read_program(text).traffic == 3 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("axes", "group"), [(("tensor",), 2), (("data", "fsdp"), 4), (("data", "fsdp", "tensor"), 8)]
)
def test_a_sum_over_axes_is_an_all_reduce_along_them(mesh, axes, group):
    # The contracted dimension is sharded: every device adds its part of [8, 32] to the others'.
    program = compiled(
        mesh,
        lambda x, y: jax.lax.with_sharding_constraint(x @ y, NamedSharding(mesh, P())),
        ((8, 64), P(None, axes)),
        ((64, 32), P(axes)),
    )
    (found,) = collectives(program, mesh)
    assert (found.kind, found.axes, found.group, found.count) == ("all-reduce", axes, group, 1)
    assert found.payload == 8 * 32 * 4
    assert found.sent == pytest.approx(2 * (group - 1) / group * 8 * 32 * 4)
    assert program.flops == 2 * 8 * 64 * 32 / group


def test_what_is_gathered_is_the_whole(mesh):
    program = compiled(
        mesh,
        lambda x: jax.lax.with_sharding_constraint(x * 2, NamedSharding(mesh, P())),
        ((64, 32), P("fsdp")),
    )
    (found,) = collectives(program, mesh)
    assert (found.kind, found.axes, found.group) == ("all-gather", ("fsdp",), 2)
    assert found.payload == 64 * 32 * 4 and found.sent == found.payload / 2


def test_a_collective_in_a_loop_counts_as_often_as_it_runs(mesh):
    def repeated(x, w):
        def body(x, _):
            y = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P()))
            return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P(None, "tensor"))), None

        return jax.lax.scan(body, x, None, length=5)[0]

    program = compiled(mesh, repeated, ((8, 16), P(None, "tensor")), ((16, 16), P("tensor")))
    reduced = [c for c in collectives(program, mesh) if c.kind == "all-reduce"]
    assert sum(c.count for c in reduced) == 5
    assert sum(c.payload for c in reduced) == 5 * 8 * 16 * 4


@pytest.mark.parametrize(
    ("attributes", "groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]], ("tensor",)),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]], ("tensor",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]], ("data",)),
        ("replica_groups=[2,4]<=[2,2,2]T(2,1,0)", [[0, 4, 2, 6], [1, 5, 3, 7]], ("data", "fsdp")),
        (
            "replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}",
            [[0, 1], [2, 3], [4, 5], [6, 7]],
            ("tensor",),
        ),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]], ("data",)),
        (
            "replica_groups=mesh['a'=8] {'a':(2)2}",
            [[0, 2], [1, 3], [4, 6], [5, 7]],
            ("fsdp",),
        ),
        ("replica_groups={}", [list(range(8))], ("data", "fsdp", "tensor")),
        ("source_target_pairs={{0,2},{2,0},{4,6}}", [[0, 2], [2, 0], [4, 6]], ("fsdp",)),
    ],
)
def test_every_way_to_write_groups_is_read(mesh, attributes, groups, axes):
    each = Instruction("x", "all-reduce", (), (), f", channel_id=1, {attributes}, to_apply=%add")
    assert np.array_equal(_groups(each, 8), groups)
    assert _axes(groups, mesh) == axes
