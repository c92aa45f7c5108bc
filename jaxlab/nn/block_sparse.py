"""A matrix product that reads only the kept blocks of a block-sparse matrix.

`benchmarks/sparse_products.py` measures its gain over a dense product; the numbers are in
`docs/sparse_execution.md`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from jaxlab.core import UsageError
from jaxlab.nn.bilinear import on_one_cpu_device

# Bytes of the operands gathered at a time on one CPU device: they stay in the second-level cache.
_CHUNK_BYTES = 2**18

# Rows of x at a time on one CPU device: more would leave the caches and take longer.
_TILE = 256


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Which blocks of a [d, f] matrix are kept; the others are zero.

    It is on the host, compared by value, and a static argument of compiled functions.

    Attributes:
      shape: (d, f), both multiples of `block`.
      block: rows and columns of a block.
      rows: the place of each kept block, counted in blocks from the top.
      cols: and from the left.

    Raises:
      UsageError: sizes that `block` does not divide; blocks outside the matrix or kept twice.

    >>> mask_df = np.kron([[True, False], [True, False], [False, True]], np.ones((16, 16), bool))
    >>> layout = BlockLayout.from_mask(mask_df, 16)
    >>> layout.rows, layout.cols, layout.density
    ((0, 1, 2), (0, 0, 1), 0.5)
    >>> blocks_nij = layout.blocks_of(jnp.ones((48, 32)))
    >>> blocks_nij.shape
    (3, 16, 16)
    >>> bool((layout.to_dense(blocks_nij) == mask_df).all())
    True
    """

    shape: tuple[int, int]
    block: int
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    def __post_init__(self):
        _require_blocks(self.shape, self.block)
        for name in ("shape", "rows", "cols"):  # make them hashable
            value = tuple(int(i) for i in getattr(self, name))
            object.__setattr__(self, name, value)
        if len(self.rows) != len(self.cols):
            raise UsageError(
                f"{len(self.rows)} rows and {len(self.cols)} cols; give one of each for every block"
            )
        grid, kept = self.grid, set()
        for at in zip(self.rows, self.cols, strict=True):
            if not (0 <= at[0] < grid[0] and 0 <= at[1] < grid[1]):
                raise UsageError(
                    f"block {at} lies outside the {grid[0]} by {grid[1]} blocks of a matrix of "
                    f"shape {self.shape}; count them from 0"
                )
            if at in kept:
                raise UsageError(f"block {at} is kept twice; name each block once")
            kept.add(at)

    @classmethod
    def from_mask(cls, mask_df: Any, block: int) -> BlockLayout:
        """The layout of a mask, with blocks from left to right and from top to bottom.

        Args:
          mask_df: bool [d, f] on the host; each block is all true or all false.
          block: rows and columns of a block.

        Raises:
          UsageError: a mask of another dtype or rank, or with a block that is partly kept.
        """
        mask_df = np.asarray(mask_df)
        if mask_df.dtype != bool or mask_df.ndim != 2:
            raise UsageError(
                f"mask of dtype {mask_df.dtype} and shape {mask_df.shape}; expected bool [d, f]"
            )
        _require_blocks(mask_df.shape, block)
        d, f = mask_df.shape
        kept = mask_df.reshape(d // block, block, f // block, block).sum(axis=(1, 3))
        partial_blocks = np.argwhere((kept > 0) & (kept < block**2))
        if len(partial_blocks):
            row, col = partial_blocks[0].tolist()
            raise UsageError(
                f"mask keeps {kept[row, col]} of the {block**2} weights of block ({row}, {col}), "
                f"and {len(partial_blocks)} blocks of {kept.size} in part; expected all or none: "
                "use smaller blocks, or mask whole blocks"
            )
        rows, cols = np.nonzero(kept)
        return cls((d, f), block, tuple(rows.tolist()), tuple(cols.tolist()))

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of the matrix from top to bottom and from left to right."""
        return self.shape[0] // self.block, self.shape[1] // self.block

    @property
    def density(self) -> float:
        """Kept blocks over all blocks, in [0, 1]."""
        return len(self.rows) / math.prod(self.grid)

    def blocks_of(self, w_df: jax.Array) -> jax.Array:
        """The kept blocks [n, i, j] of a dense matrix [d, f]; the rest is ignored."""
        if w_df.shape != self.shape:
            raise UsageError(f"matrix of shape {w_df.shape}; the layout is of {self.shape}")
        (r, c), s = self.grid, self.block
        w_rcij = jnp.asarray(w_df).reshape(r, s, c, s).transpose(0, 2, 1, 3)
        return w_rcij.reshape(r * c, s, s)[self._flat()]

    def to_dense(self, blocks_nij: jax.Array) -> jax.Array:
        """The matrix [d, f] of kept blocks [n, i, j], zero elsewhere."""
        _require_values(blocks_nij, self)
        (r, c), s = self.grid, self.block
        zeros = jnp.zeros((r * c, s, s), blocks_nij.dtype)
        w_rcij = zeros.at[self._flat()].set(blocks_nij).reshape(r, c, s, s)
        return w_rcij.transpose(0, 2, 1, 3).reshape(self.shape)

    def _flat(self) -> np.ndarray:
        rows, cols = _indices(self)
        return rows * self.grid[1] + cols


def block_sparse_matmul(x: jax.Array, blocks_nij: jax.Array, layout: BlockLayout) -> jax.Array:
    """`y = x @ W` for a matrix W of which only the kept blocks are stored and multiplied.

    For each kept block n at (row, col), `y[col] += x[row] @ blocks[n]`. The derivatives by `x` and
    by the blocks are products of kept blocks too: they can be taken any number of times in both
    modes, and batched. On one CPU device a few blocks are gathered at a time, so that they stay in
    the cache; elsewhere all at once, which takes `n * block` numbers for each row of `x`.

    Args:
      x: [..., d].
      blocks_nij: the values of the kept blocks, [n, block, block], in the order of the layout.
      layout: their places; static.

    Returns:
      [..., f] in the promoted dtype, summed in float32 or wider.

    Raises:
      UsageError: arrays that are not floats, or whose sizes are not those of the layout.

    >>> layout = BlockLayout((4, 2), block=2, rows=(1,), cols=(0,))
    >>> block_sparse_matmul(jnp.arange(4.0), jnp.asarray([[[1.0, 0.0], [10.0, 1.0]]]), layout)
    Array([32.,  3.], dtype=float32)
    """
    x = jnp.asarray(x)
    _require_values(blocks_nij, layout)
    d, f = layout.shape
    if x.ndim < 1 or x.shape[-1] != d or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UsageError(f"x of {x.dtype}{list(x.shape)}; expected floats [..., {d}]")
    y_bf = _product_p.bind(
        x.reshape(math.prod(x.shape[:-1]), d),
        blocks_nij,
        layout=layout,
        transpose=False,
        dtype=jnp.promote_types(x.dtype, blocks_nij.dtype),
        chunked=on_one_cpu_device(),
    )
    return y_bf.reshape(*x.shape[:-1], f)


def _require_blocks(shape: tuple[int, ...], block: int) -> None:
    if len(shape) != 2 or block < 1 or any(n < 1 or n % block for n in shape):
        raise UsageError(
            f"block={block} for a matrix of shape {tuple(shape)}; expected two sizes that are "
            "multiples of the block: choose a block that divides both, or pad the matrix"
        )


def _require_values(blocks_nij: jax.Array, layout: BlockLayout) -> None:
    want = (len(layout.rows), layout.block, layout.block)
    if blocks_nij.shape != want or not jnp.issubdtype(blocks_nij.dtype, jnp.floating):
        raise UsageError(
            f"blocks of {blocks_nij.dtype}{list(blocks_nij.shape)}; expected floats {list(want)}, "
            "one block for each row and col of the layout"
        )


# Two bilinear maps that are closed under differentiation: the product, and the product of two
# matrices at the kept blocks. `chunked`: one tile of rows and one chunk of blocks at a time.


def _product(
    x_bd: jax.Array, blocks_nij: jax.Array, *, dtype: Any, chunked: bool, **how: Any
) -> jax.Array:
    """`x @ W`, or `x @ W.T` with `transpose`."""

    def product(x_bd):
        return _tile_product(x_bd, blocks_nij, chunked=chunked, **how).astype(dtype)

    (tiles_tbd,) = _pieces((x_bd,), (0,), _TILE if chunked else None)
    if len(tiles_tbd) == 1:
        return product(x_bd)
    y_tbf = jax.lax.map(product, tiles_tbd)
    return y_tbf.reshape(-1, y_tbf.shape[-1])[: len(x_bd)]


def _product_at_blocks(
    x_bd: jax.Array, z_bf: jax.Array, *, dtype: Any, chunked: bool, **how: Any
) -> jax.Array:
    """The kept blocks [n, i, j] of `x.T @ z`."""

    def product(x_bd: jax.Array, z_bf: jax.Array) -> jax.Array:
        return _tile_product_at_blocks(x_bd, z_bf, chunked=chunked, **how)

    tiles = _pieces((x_bd, z_bf), (0, 0), _TILE if chunked else None)
    if len(tiles[0]) == 1:
        return product(x_bd, z_bf).astype(dtype)
    x_tbd, z_tbf = tiles
    first = product(x_tbd[0], z_tbf[0])
    rest = (x_tbd[1:], z_tbf[1:])
    blocks, _ = jax.lax.scan(lambda sum_, tile: (sum_ + product(*tile), None), first, rest)
    return blocks.astype(dtype)


def _tile_product(
    x_bd: jax.Array, blocks_nij: jax.Array, *, layout: BlockLayout, transpose: bool, chunked: bool
) -> jax.Array:
    b, s = len(x_bd), layout.block
    source, target = reversed(_indices(layout)) if transpose else _indices(layout)
    grid_out = layout.grid[0 if transpose else 1]
    x_dib = _blocks_of_columns(x_bd, s)
    blocks_noi = blocks_nij if transpose else blocks_nij.transpose(0, 2, 1)
    wide = _sum_dtype(x_bd, blocks_nij)

    def add(y_fob, chunk):
        blocks_noi, source, target = chunk
        part_nob = jnp.einsum(
            "noi,nib->nob", blocks_noi, _take(x_dib, source), preferred_element_type=wide
        )
        return y_fob.at[target].add(part_nob, mode="drop"), None

    y_fob = jnp.zeros((grid_out, s, b), wide)
    # The padding of the last chunk points past the end and is dropped.
    chunks = _pieces((blocks_noi, source, target), (0, 0, grid_out), _size(chunked, s, b))
    if len(chunks[0]) == 1:
        y_fob, _ = add(y_fob, tuple(a[0] for a in chunks))
    else:
        y_fob, _ = jax.lax.scan(add, y_fob, chunks)
    return y_fob.reshape(grid_out * s, b).T


def _tile_product_at_blocks(
    x_bd: jax.Array, z_bf: jax.Array, *, layout: BlockLayout, chunked: bool
) -> jax.Array:
    b, s = len(x_bd), layout.block
    x_dib, z_fjb = _blocks_of_columns(x_bd, s), _blocks_of_columns(z_bf, s)
    wide = _sum_dtype(x_bd, z_bf)

    def product(chunk):
        row, col = chunk
        return jnp.einsum(
            "nib,njb->nij", _take(x_dib, row), _take(z_fjb, col), preferred_element_type=wide
        )

    chunks = _pieces(_indices(layout), (0, 0), _size(chunked, s, b))
    if len(chunks[0]) == 1:
        return product(tuple(a[0] for a in chunks))
    return jax.lax.map(product, chunks).reshape(-1, s, s)[: len(layout.rows)]


def _blocks_of_columns(x_bd: jax.Array, s: int) -> jax.Array:
    """[b, d] as [d / s, s, b], so that sums over b are contiguous in memory and products wide."""
    b, d = x_bd.shape
    return x_bd.T.reshape(d // s, s, b)


def _indices(layout: BlockLayout) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(layout.rows, np.int32), np.asarray(layout.cols, np.int32)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="promise_in_bounds")


def _sum_dtype(x: jax.Array, y: jax.Array) -> Any:
    return jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)


def _size(chunked: bool, s: int, b: int) -> int | None:
    """Blocks in a chunk, which holds two float32 operands [s, b] of each; None: all of them."""
    return max(1, _CHUNK_BYTES // (8 * s * max(1, b))) if chunked else None


def _pieces(arrays: Any, fill: tuple[int, ...], size: int | None) -> tuple[jax.Array, ...]:
    """Each array [n, ...] in equal pieces [m, n / m, ...] of at most `size`, padded at the end.

    Without a size, one piece.
    """
    n = len(arrays[0])
    count = 1 if size is None else max(1, -(-n // size))
    extra = -n % count
    return tuple(
        jnp.pad(a, [(0, extra)] + [(0, 0)] * (a.ndim - 1), constant_values=value).reshape(
            count, (n + extra) // count, *a.shape[1:]
        )
        for a, value in zip(map(jnp.asarray, arrays), fill, strict=True)
    )


def _shape_of_product(
    x: Any, blocks: Any, *, layout: BlockLayout, transpose: bool, dtype: Any, chunked: bool
) -> jax.core.ShapedArray:
    return jax.core.ShapedArray((x.shape[0], layout.shape[0 if transpose else 1]), dtype)


def _product_by_x(
    ct: jax.Array, x: Any, blocks: jax.Array, *, transpose: bool, dtype: Any, **how: Any
) -> jax.Array:
    return _product_p.bind(ct, blocks, transpose=not transpose, dtype=x.aval.dtype, **how)


def _product_by_blocks(
    ct: jax.Array, x: jax.Array, blocks: Any, *, transpose: bool, dtype: Any, **how: Any
) -> jax.Array:
    left, right = (ct, x) if transpose else (x, ct)
    return _at_blocks_p.bind(left, right, dtype=blocks.aval.dtype, **how)


def _shape_at_blocks(
    x: Any, z: Any, *, layout: BlockLayout, dtype: Any, chunked: bool
) -> jax.core.ShapedArray:
    return jax.core.ShapedArray((len(layout.rows), layout.block, layout.block), dtype)


def _at_blocks_by_x(ct: jax.Array, x: Any, z: jax.Array, *, dtype: Any, **how: Any) -> jax.Array:
    return _product_p.bind(z, ct, transpose=True, dtype=x.aval.dtype, **how)


def _at_blocks_by_z(ct: jax.Array, x: jax.Array, z: Any, *, dtype: Any, **how: Any) -> jax.Array:
    return _product_p.bind(x, ct, transpose=False, dtype=z.aval.dtype, **how)


def _batched_product(args: Any, axes: Any, **how: Any) -> tuple[jax.Array, int]:
    (x, blocks), (x_axis, blocks_axis) = args, axes
    if blocks_axis is not None:
        return jax.vmap(lambda x, y: _product(x, y, **how), in_axes=tuple(axes))(x, blocks), 0
    x_vbd = jnp.moveaxis(x, x_axis, 0)  # all rows meet the same blocks
    y = _product_p.bind(x_vbd.reshape(-1, x_vbd.shape[-1]), blocks, **how)
    return y.reshape(*x_vbd.shape[:2], y.shape[-1]), 0


def _batched_at_blocks(args: Any, axes: Any, **how: Any) -> tuple[jax.Array, int]:
    return jax.vmap(lambda x, z: _product_at_blocks(x, z, **how), in_axes=tuple(axes))(*args), 0


def _bilinear(
    name: str,
    function: Callable[..., jax.Array],
    static: tuple[str, ...],
    shape: Callable[..., jax.core.ShapedArray],
    by_left: Callable[..., jax.Array],
    by_right: Callable[..., jax.Array],
    batched: Callable[..., tuple[jax.Array, int]],
) -> jax.extend.core.Primitive:
    primitive = jax.extend.core.Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames=static))
    primitive.def_abstract_eval(shape)
    ad.defbilinear(primitive, by_left, by_right)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = batched
    return primitive


_product_p = _bilinear(
    "block_sparse_matmul",
    _product,
    ("layout", "transpose", "dtype", "chunked"),
    _shape_of_product,
    _product_by_x,
    _product_by_blocks,
    _batched_product,
)
_at_blocks_p = _bilinear(
    "matmul_at_blocks",
    _product_at_blocks,
    ("layout", "dtype", "chunked"),
    _shape_at_blocks,
    _at_blocks_by_x,
    _at_blocks_by_z,
    _batched_at_blocks,
)
