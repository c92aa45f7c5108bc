"""Convolution with derivatives that run fast on CPU, and max pooling.

A convolution, its derivative by the images and its derivative by the kernel are three bilinear maps
between images x, kernel k and outputs y. The transposes of each are the other two, so derivatives
of every order and mode stay among the three.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxlab.core import UsageError, constrain
from jaxlab.nn.bilinear import bilinear, on_one_cpu_device
from jaxlab.nn.broadcast import lift
from jaxlab.nn.products import matmul

Padding = str | int | Sequence[tuple[int, int]]
"""'SAME', 'VALID', pixels on every side, or `((above, below), (left, right))`."""

HE_NORMAL = jax.nn.initializers.he_normal()
"""The default start of kernels: normal of variance `2 / fan_in`, truncated at two deviations."""

# Bytes of the factors of one product in a kernel's gradient. They must fit a core's cache; among
# 2**18 to 2**20, this trains the networks of `benchmarks/image_training.py` fastest.
CHUNK = 2**18
STRIP = 4  # output pixels computed at once where there are few channels

_barrier = lax.optimization_barrier  # without it the compiler turns a fast form into a slow one


def conv(
    x_bhwc: jax.Array,
    kernel_hwio: jax.Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of images with a kernel, as `lax.conv_general_dilated`.

    In float32 on one CPU device, XLA's derivative of it is slow (inside a loop, 20 to 80 times
    slower). There it is a bilinear primitive of our own, which can be differentiated any number of
    times in both modes, batched over images and over kernels, and used inside `lax.scan` and other
    loops. `benchmarks/image_training.py` measures it. Elsewhere, and in groups, it is XLA's.

    Args:
      x_bhwc: images [b, h, w, i].
      kernel_hwio: [h, w, i / groups, o], of the same dtype.
      stride: pixels from one output to the next; one number, or one for each of the two axes.
      padding: 'SAME' (h / stride outputs, rounded up), 'VALID' (none), pixels on each side, or
        `((above, below), (left, right))`.
      groups: blocks of channels that are convolved separately.

    Returns:
      [b, h, w, o].

    Raises:
      UsageError: a wrong rank; channels that do not match; a stride below 1; an unknown or
        negative padding.

    >>> conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    form = _Form.of(x_bhwc, kernel_hwio, stride, padding, groups)
    one_dtype = x_bhwc.dtype == kernel_hwio.dtype == jnp.float32
    if one_dtype and groups == 1 and on_one_cpu_device():
        return _output(x_bhwc, kernel_hwio, form=form)
    return _plain(x_bhwc, kernel_hwio, form.strides, form.padding, groups)


class Conv(nnx.Module):
    """`conv(x, kernel) + bias` with a kernel of its own.

    Args:
      in_dim: channels i of the images.
      out_dim: channels o of the outputs.
      window: height and width of the kernel; one number for both.
      stride: as for `conv`.
      padding: as for `conv`.
      groups: as for `conv`.
      use_bias: adds a bias that starts at zero.
      kernel_init: `(key, shape [h, w, i / groups, o], dtype) -> kernel`; by default normal of
        variance `2 / fan_in` (truncated at two deviations; arXiv 1502.01852).
      axes: logical names of the kernel's axes (see `core.RULES`); the bias has the last.
      dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        window: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: Padding = "SAME",
        groups: int = 1,
        use_bias: bool = False,
        kernel_init: Callable[..., jax.Array] = HE_NORMAL,
        axes: tuple[str | None, ...] = (None, None, "embed", "mlp"),
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if in_dim % groups or out_dim % groups:
            raise UsageError(
                f"groups={groups} does not divide in_dim={in_dim} and out_dim={out_dim}"
            )
        shape = (*_pair(window, "window"), in_dim // groups, out_dim)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32), axes=axes)
        bias = jnp.zeros((out_dim,), jnp.float32)
        self.bias = nnx.Param(bias, axes=axes[-1:]) if use_bias else None
        self.stride, self.padding, self.groups = stride, padding, groups
        self.dtype = dtype

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[b, h, w, i] to [b, h, w, o]."""
        # On a mesh, channels are not sharded: XLA's partitioner (of jax 0.10.2) gives wrong
        # derivatives by images that are sharded over both rows and channels.
        x_bhwc = constrain(x_bhwc.astype(self.dtype), "batch", None, None, None)
        y_bhwc = conv(
            x_bhwc,
            self.kernel[...].astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )
        y_bhwc = constrain(y_bhwc, "batch", None, None, None)
        if self.bias is None:
            return y_bhwc
        return y_bhwc + lift(self.bias[...].astype(self.dtype), y_bhwc.ndim)


def max_pool(
    x_bhwc: jax.Array,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    padding: int = 0,
) -> jax.Array:
    """The largest value of every window.

    If several values are the largest, the first of them, row by row, gets all of the derivative.
    Windows that tile the image are compared pixel by pixel, because XLA's derivative of
    `reduce_window` is slow on CPU; other windows use it.

    Args:
      x_bhwc: [b, h, w, c].
      window: pixels; one number, or height and width.
      stride: pixels from one window to the next, by default the window's.
      padding: pixels on each side that are never the largest; less than the window.

    Returns:
      [b, h', w', c], where h' is the number of windows that fit.

    Raises:
      UsageError: a window or stride below 1, a window larger than the image, or a padding that
        could hold a whole window.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    window = _pair(window, "window")
    stride = window if stride is None else _pair(stride, "stride")
    b, h, w, c = x_bhwc.shape
    if not 0 <= padding < min(window):
        raise UsageError(f"padding={padding}; expected 0 to {min(window) - 1} for {window}")
    most = (h + 2 * padding, w + 2 * padding)
    if window[0] > most[0] or window[1] > most[1]:
        raise UsageError(f"a window of {window} on images of {(h, w)}; the most is {most}")
    if not padding and window == stride and h % window[0] == 0 and w % window[1] == 0:
        return _max_of_tiles(x_bhwc.reshape(b, h // window[0], window[0], -1, window[1], c))
    sizes, strides = (1, *window, 1), (1, *stride, 1)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x_bhwc, -jnp.inf, lax.max, sizes, strides, pads)


@jax.custom_jvp
def _max_of_tiles(x_bhrwsc: jax.Array) -> jax.Array:
    return _first_largest(x_bhrwsc)[0]


@_max_of_tiles.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    largest, place = _first_largest(x)
    places = jnp.arange(x.shape[2] * x.shape[4]).reshape(x.shape[2], 1, x.shape[4], 1)
    is_taken = place[:, :, None, :, None] == lift(places, x.ndim)
    return largest, jnp.where(is_taken, dx, 0).sum(axis=(2, 4))


def _first_largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of each tile and its number, row by row.

    Not by `max`: its derivative asks which values equal the result and is NaN if none does, and XLA
    may compute a value twice, with and without a fused multiply-add.
    """
    pixels = [x[:, :, r, :, s] for r, s in itertools.product(range(x.shape[2]), range(x.shape[4]))]
    largest, place = pixels[0], jnp.zeros(pixels[0].shape, jnp.int32)
    for number, pixel in enumerate(pixels[1:], 1):
        place = jnp.where(pixel > largest, number, place)
        largest = jnp.maximum(pixel, largest)
    return largest, place


@dataclasses.dataclass(frozen=True)
class _Form:
    """The static part of a convolution, as pairs (height, width).

    Attributes:
      strides: pixels from one output to the next.
      padding: pixels before and after.
      size: of the images.
      window: of the kernel.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    size: tuple[int, int]
    window: tuple[int, int]

    @classmethod
    def of(cls, x: Any, kernel: Any, stride: Any, padding: Padding, groups: int) -> _Form:
        if len(x.shape) != 4 or len(kernel.shape) != 4:
            raise UsageError(
                f"conv of shapes {x.shape} and {kernel.shape}; expected images [b, h, w, i] and a "
                "kernel [h, w, i, o]"
            )
        if x.shape[3] != groups * kernel.shape[2] or kernel.shape[3] % groups:
            raise UsageError(
                f"images of {x.shape[3]} channels, a kernel {kernel.shape} and groups={groups} do "
                f"not fit; expected a kernel [h, w, {x.shape[3]} / groups, o]"
            )
        strides, size, window = _pair(stride, "stride"), x.shape[1:3], kernel.shape[:2]
        pads: Any
        if padding in ("SAME", "VALID"):
            pads = tuple(lax.padtype_to_pads(size, window, strides, padding))
        elif isinstance(padding, int):
            pads = ((padding, padding),) * 2
        else:
            pads = padding
        try:
            pads = tuple((int(low), int(high)) for low, high in pads)
        except (TypeError, ValueError):
            pads = ()
        if len(pads) != 2 or min(map(min, pads)) < 0:
            raise UsageError(
                f"padding={padding!r}; expected 'SAME', 'VALID', pixels on every side, or "
                "((above, below), (left, right))"
            )
        form = cls(strides, pads, tuple(size), tuple(window))
        if min(form.outputs) < 1:
            raise UsageError(
                f"a kernel of {form.window} on images of {form.size} with padding={padding!r} has "
                "no output; pad more, or use a smaller kernel"
            )
        return form

    @property
    def outputs(self) -> tuple[int, int]:
        """The size of the outputs."""
        height, width = (
            (n + sum(pads) - k) // s + 1
            for n, pads, k, s in zip(
                self.size, self.padding, self.window, self.strides, strict=True
            )
        )
        return height, width

    @property
    def is_disjoint(self) -> bool:
        """Whether no pixel is seen twice, and none by only a part of the kernel."""
        tiles = self.window == self.strides and not any(
            n % s for n, s in zip(self.size, self.strides, strict=True)
        )
        return self.padding == ((0, 0), (0, 0)) and (tiles or self.window == (1, 1))

    def in_strips(self, in_dim: int) -> bool:
        """Whether several outputs of a row are computed at once, for images of few channels."""
        return (
            in_dim <= STRIP
            and self.strides == (1, 1)
            and self.outputs[1] % STRIP == 0
            and not self.is_disjoint
        )


def _pair(value: Any, name: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise UsageError(f"{name}={value!r}; expected 1 or more pixels: a number, or two")
    return pair


def _plain(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# The three maps as they are computed on CPU.


def _output_on_cpu(x: jax.Array, k: jax.Array, *, form: _Form) -> jax.Array:
    """The sum over r, c, i of `x[b, p s + r - low, q s + c - low, i] k[r, c, i, o]`."""
    shape = (x.shape[0], *form.outputs, k.shape[3])
    if form.is_disjoint:
        return matmul(_tiles(x, form), k.reshape(-1, k.shape[3])).reshape(shape)
    if form.in_strips(x.shape[3]):
        placed = _placed(k, STRIP).reshape(-1, STRIP * k.shape[3])
        return matmul(_strips(x, form), placed).reshape(shape)
    return _plain(x, k, form.strides, form.padding)


def _input_on_cpu(y: jax.Array, k: jax.Array, *, form: _Form) -> jax.Array:
    """The convolution of y, zeros between its pixels, with the kernel rotated by 180 degrees."""
    if form.is_disjoint:
        o = k.shape[3]
        return _untiled(matmul(y.reshape(-1, o), k.reshape(-1, o), transpose_y=True), y, form)
    turned = _barrier(jnp.flip(k, (0, 1)).swapaxes(2, 3))
    pads = _spread_pads(form)
    if form.strides == (1, 1) and min(map(min, pads)) >= 0:
        return _plain(y, turned, (1, 1), pads)
    return _plain(_spread(y, form), turned, (1, 1), "VALID")


def _kernel_on_cpu(x: jax.Array, y: jax.Array, *, form: _Form) -> jax.Array:
    """The product of x and y over their pixels, at every tap of the kernel."""
    i, o = x.shape[3], y.shape[3]
    if form.is_disjoint:
        k = _sum_over_images(lambda x, y: (_tiles(x, form), y.reshape(-1, o)), x, y)
        return k.reshape(*form.window, i, o)
    if form.in_strips(i):
        return _kernel_by_strips(x, y, form)
    if form.strides == (1, 1):
        return _kernel_by_shifts(x, y, form)
    k = _sum_over_images(lambda x, y: (_patches(x, form), y.reshape(-1, o)), x, y)
    return k.reshape(*form.window, i, o)


def _kernel_by_shifts(x: jax.Array, y: jax.Array, form: _Form) -> jax.Array:
    """Products of shifts of x along rows, one for each column of the kernel, with shifts of y."""
    (h, w), (top, sides) = form.window, form.padding
    i, o = x.shape[3], y.shape[3]

    def factors(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = _shifts(_pad(x, (0, 0), sides), w, axis=2)
        y = _shifts(_pad(y, (h - 1 - top[0], h - 1 - top[1]), (0, 0)), h, axis=1)
        return x.reshape(-1, w * i), y.reshape(-1, h * o)

    k = _sum_over_images(factors, x, y).reshape(w, i, h, o)
    return jnp.flip(k.transpose(2, 0, 1, 3), 0)


def _kernel_by_strips(x: jax.Array, y: jax.Array, form: _Form) -> jax.Array:
    (h, w), i, o = form.window, x.shape[3], y.shape[3]
    k = _sum_over_images(lambda x, y: (_strips(x, form), y.reshape(-1, STRIP * o)), x, y)
    k = k.reshape(h, STRIP - 1 + w, i, STRIP, o)
    return functools.reduce(jnp.add, (k[:, n : n + w, :, n] for n in range(STRIP)))


def _sum_over_images(
    factors: Callable[..., tuple[jax.Array, jax.Array]], x: jax.Array, y: jax.Array
) -> jax.Array:
    """The sum over images of `p^T q` for the factors `p, q`, as many at once as fit the cache."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dot_general(*factors(x, y), (((0,), (0,)), ((), ())))

    b = x.shape[0]
    of_one = jax.eval_shape(factors, x[:1], y[:1])
    fitting = max(1, CHUNK // sum(4 * factor.size for factor in of_one))
    at_once = 2 ** (fitting.bit_length() - 1)
    if b <= at_once:
        return product(x, y)

    # Slices of the whole: reshaping it would make XLA compute x and y again.
    def add(n: jax.Array, total: jax.Array) -> jax.Array:
        part = (lax.dynamic_slice_in_dim(z, n * at_once, at_once) for z in (x, y))
        return total + product(*part)

    parts = b // at_once
    zeros = jnp.zeros([factor.shape[1] for factor in of_one], x.dtype)
    total, rest = lax.fori_loop(0, parts, add, zeros), parts * at_once
    return total if rest == b else total + product(x[rest:], y[rest:])


def _pad(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Zeros around images; a negative number crops."""
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _shifts(x: jax.Array, count: int, axis: int) -> jax.Array:
    """`count` windows of x along an axis, each one pixel further, concatenated as channels."""
    size = x.shape[axis] - count + 1
    return jnp.concatenate(
        [lax.slice_in_dim(x, n, n + size, axis=axis) for n in range(count)], axis=-1
    )


def _patches(x: jax.Array, form: _Form) -> jax.Array:
    """[outputs of all images, h w i]: what each output sees."""
    x = _pad(x, *form.padding)
    (rows, columns), (s, t) = form.outputs, form.strides
    taps = [
        x[:, r : r + (rows - 1) * s + 1 : s, c : c + (columns - 1) * t + 1 : t]
        for r, c in itertools.product(*map(range, form.window))
    ]
    return jnp.concatenate(taps, axis=-1).reshape(-1, len(taps) * x.shape[3])


def _strips(x: jax.Array, form: _Form) -> jax.Array:
    """[strips of all images, h (STRIP - 1 + w) i]: what neighbouring outputs of a row see."""
    b, _, _, i = x.shape
    (h, w), (rows, columns) = form.window, form.outputs
    count, wide = columns // STRIP, STRIP - 1 + w
    blocks = -(-wide // STRIP)  # of STRIP columns each, seen by one strip
    x = _pad(x, *form.padding)
    x = _pad(x, (0, 0), (0, (count + blocks - 1) * STRIP - x.shape[2]))
    x = _shifts(x.reshape(b, x.shape[1], -1, STRIP * i), blocks, axis=2)[..., : wide * i]
    return _shifts(x, h, axis=1).reshape(b * rows * count, h * wide * i)


def _placed(k: jax.Array, places: int) -> jax.Array:
    """[h, places - 1 + w, i, places, o]: the kernel at each place of a row, zeros around it."""
    return jnp.stack([_pad(k, (n, places - 1 - n), (0, 0)) for n in range(places)], axis=3)


def _tiles(x: jax.Array, form: _Form) -> jax.Array:
    """[outputs of all images, h w i], for convolutions that see no pixel twice."""
    if form.window == (1, 1):
        x = x[:, :: form.strides[0], :: form.strides[1]]
        return x.reshape(-1, x.shape[3])
    b, _, _, i = x.shape
    (h, w), (rows, columns) = form.window, form.outputs
    x = x.reshape(b, rows, h, columns, w, i).swapaxes(2, 3)
    return x.reshape(b * rows * columns, h * w * i)


def _untiled(tiles: jax.Array, y: jax.Array, form: _Form) -> jax.Array:
    """The images of `_tiles`, zero where nothing is seen; y gives the number of images."""
    b, (h, w), (rows, columns) = y.shape[0], form.window, form.outputs
    if form.window == (1, 1):
        return _spread(tiles.reshape(b, rows, columns, -1), form)
    return tiles.reshape(b, rows, columns, h, w, -1).swapaxes(2, 3).reshape(b, *form.size, -1)


def _spread_pads(form: _Form) -> tuple[tuple[int, int], ...]:
    """The padding of outputs with which the rotated kernel meets each where it saw the images."""
    return tuple(
        (k - 1 - low, n + low - ((outputs - 1) * s + 1))
        for n, k, s, (low, _), outputs in zip(
            form.size, form.window, form.strides, form.padding, form.outputs, strict=True
        )
    )


def _spread(y: jax.Array, form: _Form) -> jax.Array:
    """Zeros between and around the pixels of y."""
    rows, columns = (
        (*pads, s - 1) for pads, s in zip(_spread_pads(form), form.strides, strict=True)
    )
    return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


# The three maps as primitives. A transpose or a batch of one is again one of them.


def _batched(
    product: Callable[..., jax.Array], factors: Any, axes: Any, places: Any, form: _Form
) -> tuple[jax.Array, int]:
    """A batch of one factor is merged with an axis that the product has too.

    Args:
      product: the map.
      factors: two arrays.
      axes: the batch axis of each, or None.
      places: for each factor, that axis in it and in the product.
      form: of the convolution.
    """
    if None not in axes:  # one after another: XLA is slow at convolutions in groups
        pairs = tuple(jnp.moveaxis(x, a, 0) for x, a in zip(factors, axes, strict=True))
        return lax.map(lambda pair: product(*pair, form=form), pairs), 0
    which = 0 if axes[1] is None else 1
    inner, outer = places[which]
    x = jnp.moveaxis(factors[which], axes[which], inner)
    n, size = x.shape[inner : inner + 2]
    factors = list(factors)
    factors[which] = x.reshape(*x.shape[:inner], n * size, *x.shape[inner + 2 :])
    y = product(*factors, form=form)
    return y.reshape(*y.shape[:outer], n, y.shape[outer] // n, *y.shape[outer + 1 :]), outer


_output: Callable[..., jax.Array] = bilinear(
    "conv",
    _output_on_cpu,
    shape=lambda x, k, form: (x.shape[0], *form.outputs, k.shape[3]),
    by_first=lambda y, x, k, form: _input(y, k, form=form),
    by_second=lambda y, x, k, form: _kernel(x, y, form=form),
    batched=lambda xk, axes, form: _batched(_output, xk, axes, ((0, 0), (3, 3)), form),
)
_input: Callable[..., jax.Array] = bilinear(
    "conv_input",
    _input_on_cpu,
    shape=lambda y, k, form: (y.shape[0], *form.size, k.shape[2]),
    by_first=lambda x, y, k, form: _output(x, k, form=form),
    by_second=lambda x, y, k, form: _kernel(x, y, form=form),
    batched=lambda yk, axes, form: _batched(_input, yk, axes, ((0, 0), (2, 3)), form),
)
_kernel: Callable[..., jax.Array] = bilinear(
    "conv_kernel",
    _kernel_on_cpu,
    shape=lambda x, y, form: (*form.window, x.shape[3], y.shape[3]),
    by_first=lambda k, x, y, form: _input(y, k, form=form),
    by_second=lambda k, x, y, form: _output(x, k, form=form),
    batched=lambda xy, axes, form: _batched(_kernel, xy, axes, ((3, 2), (3, 3)), form),
)
