from __future__ import annotations

import itertools
import json
import math
import pathlib
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sparse_products
from jaxlab.core import UsageError, batch_sharding, make_mesh, use_mesh
from jaxlab.nn import BlockLayout, block_sparse_matmul


def numbers(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def random_layout(shape, block, num_blocks, seed=0, empty_col=None):
    """A layout of so many blocks, none of them in one column of blocks, in no order."""
    grid = itertools.product(range(shape[0] // block), range(shape[1] // block))
    grid = [at for at in grid if at[1] != empty_col]
    picked = np.random.default_rng(seed).permutation(len(grid))[:num_blocks]
    rows, cols = zip(*(grid[i] for i in picked), strict=True)
    return BlockLayout(shape, block, rows, cols)


def placed(blocks_nij, layout):
    """The dense matrix: each block times the indicators of its row and column."""
    r, c = (size // layout.block for size in layout.shape)
    row_nr, col_nc = np.eye(r)[list(layout.rows)], np.eye(c)[list(layout.cols)]
    w = jnp.einsum("nij,nr,nc->ricj", blocks_nij.astype(jnp.float32), row_nr, col_nc)
    return w.reshape(layout.shape)


def assert_close(got, want):
    """Equal leaves, up to roundings of their largest number."""
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(abs(theirs).max()))


def values_of(layout, seed=1, dtype=jnp.float32):
    return numbers(len(layout.rows), layout.block, layout.block, seed=seed, dtype=dtype)


def sparse_sum(layout):
    return lambda x, blocks: jnp.exp(jnp.sin(block_sparse_matmul(x, blocks, layout))).sum()


def dense_sum(layout):
    return lambda x, blocks: jnp.exp(jnp.sin(x @ placed(blocks, layout))).sum()


# (rows of x, layout): all blocks; an empty column of blocks; one block of one weight; more blocks
# and more rows than are taken at a time, neither filling up the last piece.
CASES = {
    "dense": (5, random_layout((6, 4), 2, 6)),
    "empty column": (3, random_layout((12, 9), 3, 4, empty_col=1)),
    "one weight": (2, random_layout((3, 2), 1, 1)),
    "pieces": (511, random_layout((80, 64), 16, 13, empty_col=2)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_of_both_modes_equal_those_of_the_dense_product(case):
    b, layout = CASES[case]
    at = numbers(b, layout.shape[0]), values_of(layout)
    step = numbers(*at[0].shape, seed=2), values_of(layout, seed=3)

    def derivatives(f):
        gradient = jax.grad(f, argnums=(0, 1))
        return jax.jvp(f, at, step), jax.jvp(gradient, at, step)

    got = jax.jit(lambda: derivatives(sparse_sum(layout)))()
    assert_close(got, jax.jit(lambda: derivatives(dense_sum(layout)))())


@pytest.mark.parametrize("case", CASES)
def test_the_product_equals_that_of_numpy_without_jit(case):
    b, layout = CASES[case]
    x, blocks = numbers(b, layout.shape[0]), values_of(layout)
    want = np.asarray(x, np.float64) @ np.asarray(placed(blocks, layout), np.float64)
    np.testing.assert_allclose(block_sparse_matmul(x, blocks, layout), want, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_in_reverse_mode_twice_equals_the_dense_one():
    b, layout = CASES["empty column"]
    at = numbers(b, layout.shape[0]), values_of(layout)

    def curvature(f):
        slope = lambda *at: sum(  # noqa: E731
            (g**2).sum() for g in jax.grad(f, argnums=(0, 1))(*at)
        )
        return jax.jit(jax.grad(slope, argnums=(0, 1)))(*at)

    assert_close(curvature(sparse_sum(layout)), curvature(dense_sum(layout)))


def test_the_product_at_the_blocks_has_derivatives_by_both_factors():
    b, layout = CASES["empty column"]
    x, z, probe = numbers(b, layout.shape[0]), numbers(b, layout.shape[1]), values_of(layout)

    def at_blocks(x, z):
        return jax.vjp(lambda w: block_sparse_matmul(x, w, layout), probe)[1](z)[0]

    def dense_at_blocks(x, z):
        return jax.vjp(lambda w: x @ placed(w, layout), probe)[1](z)[0]

    got, want = (
        jax.grad(lambda x, z, f=f: (f(x, z) * probe).sum(), argnums=(0, 1))(x, z)
        for f in (at_blocks, dense_at_blocks)
    )
    assert_close(got, want)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)])
def test_a_batch_of_either_factor_equals_a_loop_also_in_gradients(axes):
    b, layout = CASES["empty column"]
    x, blocks = numbers(4, b, layout.shape[0]), numbers(4, len(layout.rows), 3, 3, seed=1)
    gradient = jax.value_and_grad(sparse_sum(layout), argnums=(0, 1))
    given = [
        a[0] if axis is None else jnp.moveaxis(a, 0, axis)
        for a, axis in zip((x, blocks), axes, strict=True)
    ]
    got = jax.vmap(gradient, in_axes=axes)(*given)
    at = [
        [a[0] if axis is None else a[i] for a, axis in zip((x, blocks), axes, strict=True)]
        for i in range(4)
    ]
    assert_close(got, jax.tree.map(lambda *rows: jnp.stack(rows), *(gradient(*a) for a in at)))


def test_gradients_of_a_batched_product_equal_those_of_its_rows():
    b, layout = CASES["empty column"]
    x, blocks = numbers(4, b, layout.shape[0]), values_of(layout)

    def batched(x, blocks):
        y = jax.vmap(lambda x: block_sparse_matmul(x, blocks, layout))(x)
        return jnp.exp(jnp.sin(y)).sum()

    got = jax.grad(batched, argnums=(0, 1))(x, blocks)
    assert_close(got, jax.grad(dense_sum(layout), argnums=(0, 1))(x, blocks))


@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_x_may_have_any_leading_axes(shape):
    _, layout = CASES["empty column"]
    x, blocks = numbers(*shape, layout.shape[0]), values_of(layout)
    want = np.asarray(x) @ np.asarray(placed(blocks, layout))
    got, (by_x, by_blocks) = jax.value_and_grad(sparse_sum(layout), argnums=(0, 1))(x, blocks)
    np.testing.assert_allclose(got, np.exp(np.sin(want)).sum(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block_sparse_matmul(x, blocks, layout), want, rtol=1e-4, atol=1e-5)
    assert by_x.shape == x.shape and by_blocks.shape == blocks.shape


@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")],
)
def test_half_precision_is_summed_in_single_and_each_gradient_has_its_dtype(x_dtype, dtype):
    layout = BlockLayout((512, 2), 2, tuple(range(256)), (0,) * 256)
    x, blocks = numbers(3, 512, dtype=x_dtype), values_of(layout, dtype=dtype)
    got = block_sparse_matmul(x, blocks, layout)
    assert got.dtype == jnp.promote_types(x_dtype, dtype)
    want = np.asarray(x, np.float64) @ np.asarray(placed(blocks, layout), np.float64)
    rounding = 2.0**-8 if got.dtype == jnp.bfloat16 else 1e-5  # one rounding, not 512 of them
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=1e-4)
    by_x, by_blocks = jax.grad(
        lambda *at: block_sparse_matmul(*at, layout).astype(jnp.float32).sum(), argnums=(0, 1)
    )(x, blocks)
    assert (by_x.dtype, by_blocks.dtype) == (x.dtype, blocks.dtype)
    row_sums = np.asarray(placed(blocks, layout), np.float64).sum(axis=1)
    np.testing.assert_allclose(
        np.asarray(by_x, np.float64), np.broadcast_to(row_sums, by_x.shape), rtol=2.0**-8, atol=1e-4
    )


def test_numbers_that_are_not_kept_are_never_read():
    # 13 blocks are taken 7 at a time: what fills up the second 7 must not touch the first column.
    rows, cols = zip((0, 3), *itertools.product(range(1, 5), range(3)), strict=True)
    layout = BlockLayout((80, 64), 16, rows, cols)
    x = numbers(256, 80).at[:, :16].set(jnp.nan)
    y_bf = block_sparse_matmul(x, values_of(layout), layout)
    assert np.isfinite(y_bf[:, :48]).all() and np.isnan(y_bf[:, 48:]).all()


def test_a_layout_without_blocks_is_the_zero_matrix():
    layout = BlockLayout.from_mask(np.zeros((4, 6), bool), 2)
    x, blocks = numbers(3, 4), jnp.zeros((0, 2, 2))
    value, (by_x, by_blocks) = jax.value_and_grad(
        lambda *at: block_sparse_matmul(*at, layout).sum(), argnums=(0, 1)
    )(x, blocks)
    assert value == 0 and layout.density == 0
    assert not by_x.any() and by_x.shape == x.shape and by_blocks.shape == blocks.shape


def test_rows_over_several_devices_give_the_same_product_and_gradients():
    _, layout = CASES["pieces"]
    x, blocks = numbers(16, layout.shape[0]), values_of(layout)
    gradient = jax.value_and_grad(sparse_sum(layout), argnums=(0, 1))
    mesh = make_mesh(devices=jax.devices()[:2])
    with use_mesh(mesh):
        placed_x = jax.device_put(x, batch_sharding(mesh))
        got = jax.jit(gradient)(placed_x, blocks)
    assert_close(got, gradient(x, blocks))


def test_no_array_of_a_gradient_has_the_size_of_the_dense_matrix():
    layout = BlockLayout((256, 256), 16, (3, 9), (0, 5))
    for devices in jax.devices()[:1], jax.devices()[:2]:  # in pieces, and in one
        with use_mesh(make_mesh(devices=devices)):
            gradient = jax.jit(jax.grad(sparse_sum(layout), argnums=(0, 1)))
            text = gradient.lower(numbers(3, 256), values_of(layout)).as_text()
        shapes = re.findall(r"tensor<((?:\d+x)+)", text)
        sizes = [math.prod(map(int, shape.strip("x").split("x"))) for shape in shapes]
        assert 3 * 256 in sizes and max(sizes) < 256 * 256 / 16


def test_equal_layouts_share_what_is_compiled():
    layout = CASES["empty column"][1]
    again = BlockLayout(list(layout.shape), 3, np.array(layout.rows), np.array(layout.cols))
    assert again == layout and hash(again) == hash(layout)
    static = jax.jit(block_sparse_matmul, static_argnames="layout")
    x, blocks = numbers(3, 12), values_of(layout)
    static(x, blocks, layout=layout)
    static(x, blocks, layout=again)
    assert static._cache_size() == 1


def test_a_mask_gives_its_blocks_and_they_give_it_back():
    grid = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
    mask_df = np.kron(grid, np.ones((4, 4), bool))
    layout = BlockLayout.from_mask(mask_df, 4)
    assert layout.rows == (0, 1, 1, 2, 2) and layout.cols == (0, 1, 2, 0, 2)
    assert layout.density == 5 / 12
    w_df = numbers(16, 12)
    blocks = layout.blocks_of(w_df)
    np.testing.assert_array_equal(blocks[1], w_df[4:8, 4:8])
    np.testing.assert_array_equal(layout.to_dense(blocks), np.where(mask_df, w_df, 0))
    halves = BlockLayout.from_mask(mask_df, 2)
    np.testing.assert_array_equal(halves.to_dense(halves.blocks_of(w_df)), layout.to_dense(blocks))


HALF = np.kron([[1, 0], [0, 1]], np.ones((4, 4))).astype(bool)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: BlockLayout.from_mask(HALF, 8), r"keeps 32 of the 64 weights of block \(0, 0\)"),
        (lambda: BlockLayout.from_mask(HALF, 3), r"block=3 for a matrix of shape \(8, 8\)"),
        (lambda: BlockLayout.from_mask(HALF, 0), "block=0"),
        (lambda: BlockLayout.from_mask(HALF.astype(int), 4), "dtype int64"),
        (lambda: BlockLayout.from_mask(HALF[0], 4), r"shape \(8,\)"),
        (lambda: BlockLayout((8, 8), 4, (0,), (2,)), r"block \(0, 2\) lies outside the 2 by 2"),
        (lambda: BlockLayout((8, 8), 4, (-1,), (0,)), r"block \(-1, 0\) lies outside"),
        (lambda: BlockLayout((8, 8), 4, (1, 1), (0, 0)), r"block \(1, 0\) is kept twice"),
        (lambda: BlockLayout((8, 8), 4, (1, 1), (0,)), "2 rows and 1 cols"),
        (lambda: BlockLayout((8, 0), 4, (), ()), r"shape \(8, 0\)"),
    ],
)
def test_a_layout_that_is_none_is_refused_with_its_values(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize(
    ("x", "blocks", "says"),
    [
        ((2, 7), (2, 4, 4), r"x of float32\[2, 7\]; expected floats \[\.\.\., 8\]"),
        ((2, 8), (3, 4, 4), r"blocks of float32\[3, 4, 4\]; expected floats \[2, 4, 4\]"),
        ((2, 8), (2, 4), r"blocks of float32\[2, 4\]"),
    ],
)
def test_arrays_of_other_sizes_are_refused_with_both(x, blocks, says):
    layout = BlockLayout.from_mask(HALF, 4)
    with pytest.raises(UsageError, match=says):
        block_sparse_matmul(numbers(*x), numbers(*blocks), layout)


def test_whole_numbers_are_refused():
    layout = BlockLayout.from_mask(HALF, 4)
    with pytest.raises(UsageError, match="int32"):
        block_sparse_matmul(jnp.ones((2, 8), jnp.int32), values_of(layout), layout)
    with pytest.raises(UsageError, match="int32"):
        block_sparse_matmul(numbers(2, 8), jnp.ones((2, 4, 4), jnp.int32), layout)
    with pytest.raises(UsageError, match=r"matrix of shape \(8, 4\)"):
        layout.blocks_of(jnp.ones((8, 4)))


def test_the_benchmark_runs_and_ends_with_a_summary_of_its_lines(tmp_path, python):
    table = tmp_path / "table.md"
    process = python(
        "-m", "benchmarks.sparse_products", "--quick", f"--table={table}", XLA_FLAGS=""
    )
    assert process.returncode == 0, process.stderr
    *lines, last = map(json.loads, process.stdout.splitlines())
    assert [(row["pass"], row["density"]) for row in lines] == list(
        itertools.product(("forward", "gradients"), (0.1, 0.5))
    )
    ways = ["masked", "block16", "bcsr", "bcoo"]
    for row in lines:
        assert list(row["over_dense"]) == ways and row["dense_ms"] > 0
        assert row["kept"]["block16"] == {0.1: 2 / 16, 0.5: 0.5}[row["density"]]
        assert all(isinstance(r, str) or r > 0 for r in row["over_dense"].values())
    assert set(last["largest_density"]) == {"forward", "gradients"}
    for of in last["largest_density"].values():
        assert list(of) == ["64"] and list(of["64"]) == ways
        assert set(of["64"].values()) <= {"NONE", 0.5, 0.1001, 0.125}
    assert len(table.read_text().splitlines()) == 2 * (2 + 2) + 1  # two tables, a line between


def test_the_summary_names_the_largest_density_that_wins_or_none():
    over = "over 10 times dense, not measured further"
    rows = [
        {
            "pass": "forward",
            "n": 8,
            "density": d,
            "dense_ms": 1.0,
            "over_dense": {"a": a, "b": b, "c": c},
            "kept": {"a": d, "b": 2 * d, "c": d},
        }
        for d, a, b, c in [(0.1, 0.5, 0.2, 2.0), (0.2, 0.95, 0.94, over), (0.5, 0.96, 1.5, over)]
    ]
    of = sparse_products.summary(rows)["largest_density"]
    assert of == {"forward": {8: {"a": 0.2, "b": 0.4, "c": "NONE"}}}
    assert "| n 8 | 0.2 | 1.00 | **0.95** | **0.94** | over 10 |" in sparse_products.table(rows)


@pytest.mark.parametrize("on_cpu", [True, False])  # by either clock
def test_a_way_that_takes_too_long_is_said_to_and_is_not_measured_again(on_cpu, monkeypatch):
    monkeypatch.setattr(sparse_products, "on_cpu", lambda: on_cpu)
    w = np.eye(4, dtype=np.float32)

    def slow(x, w):
        return jax.lax.fori_loop(0, 10_000, lambda i, y: jnp.sin(y) * 0 + x @ w, x)

    def ways(n, part, blocks):
        yield "dense", lambda: sparse_products.Way(jnp.matmul, w, (), w, 1.0)
        yield "slow", lambda: sparse_products.Way(slow, w, (), w, part)
        yield "empty", lambda: None

    monkeypatch.setattr(sparse_products, "ways", ways)
    args, too_slow = SimpleNamespace(batch=2, blocks=(), cap=3, rounds=1, steps=1), {}
    said = [
        sparse_products.measure(4, "forward", part, too_slow, args)["over_dense"]
        for part in (0.1, 0.5)
    ]
    assert [row["slow"] for row in said] == [
        "over 3 times dense, not measured further",
        "over 3 times dense at density 0.1, not measured here",
    ]
    assert said[0]["empty"] == "no block, 0.1 of so few rounds to none"


def test_the_benchmark_measures_no_wrong_product():
    w = np.eye(4, dtype=np.float32)
    wrong = sparse_products.Way(jnp.matmul, w, (), 2 * w, 1.0)
    with pytest.raises(SystemExit, match="a product is off by"):
        sparse_products.call_of(wrong, numbers(2, 4), "forward")


@pytest.mark.parametrize("part", ["0", "1.5", "nan", "half"])
def test_densities_that_are_none_are_refused(part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sparse_products", "--densities", part])
    with pytest.raises(SystemExit):
        sparse_products.arguments()
    assert f"{part} is not a density over 0 and up to 1" in capsys.readouterr().err


def test_the_example_of_the_page_runs_and_keeps_what_it_says(capsys):
    page = pathlib.Path(__file__).parents[2] / "docs" / "sparse_execution.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(example, page.name, "exec"), names)
    capsys.readouterr()
    layout, blocks = names["layout"], names["blocks"]
    assert_close(names["y"], names["x"] @ placed(blocks, layout))
    np.testing.assert_allclose(names["gradient"], 256.0)  # sums over 256 rows of ones
