"""Digital corruptions: of colour, resolution and shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from jaxlab.data.images.corruptions.filters import SYMMETRIC, gaussian_matrices, separable
from jaxlab.data.images.corruptions.levels import as_levels, on_unit_interval, rounded


@on_unit_interval
def contrast(key: jax.Array, x_hwc: jax.Array, share: jax.Array) -> jax.Array:
    """`(x - mean) share + mean`, with the mean of each channel of the image."""
    mean_11c = x_hwc.mean(axis=(0, 1), keepdims=True)
    return (x_hwc - mean_11c) * share + mean_11c


def brightness_constants(size: tuple[int, int], more: float) -> tuple[float, np.ndarray]:
    """`more`, and a table that maps each level of the brightest channel, uint8 [256].

    At some severities the exact result is an integer, so that rounding in double precision, as in
    the published sets, decides between two levels.
    """
    return more, (np.minimum(np.arange(256) / 255 + more, 1) * 255).astype(np.uint8)


def brightness(
    key: jax.Array, image_hwc: jax.Array, more: jax.Array, brightest_256: jax.Array
) -> jax.Array:
    """Adds `more` to the value in HSV, clipped at 1; hue and saturation are unchanged."""
    value, saturation, hue_hwc = _hsv(image_hwc.astype(jnp.float32) / 255)
    others_hwc = as_levels(jnp.clip(value + more, 0, 1) * (1 - saturation * hue_hwc))
    is_brightest = image_hwc == image_hwc.max(axis=2, keepdims=True)
    return jnp.where(is_brightest, brightest_256[image_hwc], others_hwc)


@on_unit_interval
def saturate(key: jax.Array, x_hwc: jax.Array, factor: jax.Array, more: jax.Array) -> jax.Array:
    """Maps the saturation s in HSV to `factor s + more`, clipped to [0, 1]; the rest is unchanged.

    Grey has hue 0, which is red, so it turns reddish if `more` is above 0.
    """
    value, saturation, hue_hwc = _hsv(x_hwc)
    return value * (1 - jnp.clip(saturation * factor + more, 0, 1) * hue_hwc)


def _hsv(x_hwc: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns value, saturation and hue with `x = value (1 - saturation hue)`.

    This hue has three components, 0 for the largest channel and 1 for the smallest; it is red if
    all channels are equal.
    """
    value, lowest = x_hwc.max(axis=2, keepdims=True), x_hwc.min(axis=2, keepdims=True)
    chroma = value - lowest
    red = np.float32(np.arange(x_hwc.shape[2]) > 0)
    hue_hwc = jnp.where(chroma > 0, (value - x_hwc) / jnp.where(chroma > 0, chroma, 1), red)
    return value, chroma / jnp.where(value > 0, value, 1), hue_hwc


def box_matrix(num_in: int, num_out: int) -> np.ndarray:
    """Returns the matrix [num_out, num_in] that resizes a line with Pillow's `BOX` filter.

    An output is the mean of the pixels whose centre is inside its interval, which is at least one
    pixel wide; a centre on the right end counts, one on the left end does not.

    >>> box_matrix(3, 2).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    scale = num_in / num_out
    centre = (np.arange(num_out)[:, None] + 0.5) * scale
    at = (np.arange(num_in)[None, :] + 0.5 - centre) / max(scale, 1)
    inside = ((at > -0.5) & (at <= 0.5)).astype(np.float64)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def pixelate_constants(size: tuple[int, int], share: float) -> tuple[np.ndarray, ...]:
    """Matrices to the small size, and the index of the small pixel for each large one."""
    down = [box_matrix(n, int(n * share)) for n in size]
    up = [box_matrix(int(n * share), n).argmax(axis=1) for n in size]
    return *down, *up


def pixelate(
    key: jax.Array,
    image_hwc: jax.Array,
    rows_ih: jax.Array,
    columns_jw: jax.Array,
    row_h: jax.Array,
    column_w: jax.Array,
) -> jax.Array:
    """Downscales by box averages, rounding after each direction like Pillow, and upscales again."""
    exact = jax.lax.Precision.HIGHEST
    image_hwc = image_hwc.astype(jnp.float32)
    small_hjc = rounded(jnp.einsum("jw,hwc->hjc", columns_jw, image_hwc, precision=exact))
    small_hjc = small_hjc.astype(jnp.float32)
    small_ijc = rounded(jnp.einsum("ih,hjc->ijc", rows_ih, small_hjc, precision=exact))
    return small_ijc[row_h][:, column_w]


def elastic_constants(
    size: tuple[int, int], amplitude: float, sigma: float, reach: float
) -> tuple[np.ndarray | float, ...]:
    """Parameters in pixels; given as fractions of the shorter side."""
    side = min(size)
    middle, arm = np.array([size[1] // 2, size[0] // 2]), side // 3
    points = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    blur = gaussian_matrices(size, sigma * side, truncate=3.0, border=SYMMETRIC)
    return float(amplitude * side), *blur, float(reach * side), points.astype(np.float32)


@on_unit_interval
def elastic_transform(
    key: jax.Array,
    x_hwc: jax.Array,
    amplitude: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    reach: jax.Array,
    points_3xy: jax.Array,
) -> jax.Array:
    """Applies a random affine map, then a displacement of every pixel, with bilinear sampling.

    The map moves three points by up to `reach` in each direction; the displacement is blurred
    uniform noise times `amplitude`.
    """
    of_points, of_shift = jax.random.split(key)
    moved_3xy = points_3xy + jax.random.uniform(of_points, (3, 2), jnp.float32, -reach, reach)
    x_hwc = _affine(x_hwc, points_3xy, moved_3xy)
    h, w, _ = x_hwc.shape
    noise_hw2 = jax.random.uniform(of_shift, (h, w, 2), jnp.float32, -1, 1)
    shift_hw2 = amplitude * separable(noise_hw2, rows, columns)
    y_hw, x_hw = jnp.mgrid[:h, :w]
    return _sample(x_hwc, y_hw + shift_hw2[..., 0], x_hw + shift_hw2[..., 1], "reflect")


def _affine(x_hwc: jax.Array, from_3xy: jax.Array, to_3xy: jax.Array) -> jax.Array:
    """Applies the affine map that takes three points to three others."""
    h, w, _ = x_hwc.shape
    # The source of each pixel, in the coordinates that the moved triangle spans.
    a, b, a_from, b_from = (points[i] - points[1] for points in (to_3xy, from_3xy) for i in (0, 2))
    y_hw, x_hw = jnp.mgrid[:h, :w].astype(jnp.float32)
    x_hw, y_hw = x_hw - to_3xy[1, 0], y_hw - to_3xy[1, 1]
    area = a[0] * b[1] - a[1] * b[0]
    s_hw, t_hw = (x_hw * b[1] - y_hw * b[0]) / area, (y_hw * a[0] - x_hw * a[1]) / area
    x_hw, y_hw = (from_3xy[1, i] + s_hw * a_from[i] + t_hw * b_from[i] for i in (0, 1))
    return _sample(x_hwc, y_hw, x_hw, "mirror")


def _sample(x_hwc: jax.Array, y_hw: jax.Array, x_hw: jax.Array, mode: str) -> jax.Array:
    # A compiler may compute a coordinate twice with different rounding, once for the pixel index
    # and once for its weight; very close to a pixel the two would not match. So coordinates are
    # multiples of 1/1024: either on a pixel or not close to one.
    y_hw, x_hw = (jnp.round(coordinates * 1024) / 1024 for coordinates in (y_hw, x_hw))

    def channel(x: jax.Array) -> jax.Array:
        return map_coordinates(x, (y_hw, x_hw), order=1, mode=mode)

    return jax.vmap(channel, in_axes=2, out_axes=2)(x_hwc)
