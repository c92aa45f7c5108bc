"""All corruptions by name, with their parameters at five severities."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import UsageError, named, nearest
from jaxlab.data.images.corruptions import blur, digital, jpeg, noise, spatter, weather

SIZE = 32
"""Height and width of the images that the parameters are meant for."""
SEVERITIES = (1, 2, 3, 4, 5)
"""From mild to strong."""
CHUNK = 64
"""Number of 32x32 images per call of the compiled program; fewer of larger ones."""
SMALLEST = 8
"""The smallest height and width of an image."""
KEY_KIND = "threefry2x32"
"""The kind of key whose draws do not depend on the number of images."""


def _numbers(size: tuple[int, int], *parameters: float) -> tuple[float, ...]:
    # All floats, so that all severities share one compiled program.
    return tuple(map(float, parameters))


@dataclasses.dataclass(frozen=True)
class Kind:
    """One corruption.

    Attributes:
      parameters: the parameters of severity 1 to 5.
      function: `(key, image_hwc, *constants) -> image_hwc`, uint8 levels.
      constants: `((height, width), *parameters) -> constants`; by default the parameters.
      on_host: replaces `function` on the host: `(images_bhwc, *parameters) -> images_bhwc`.
      one_channel: whether it also works for images with one channel.
    """

    parameters: tuple[tuple[float, ...], ...]
    function: Callable[..., jax.Array] | None = None
    constants: Callable[..., tuple] = _numbers
    on_host: Callable[..., np.ndarray] | None = None
    one_channel: bool = True


def _each(*values: float) -> tuple[tuple[float, ...], ...]:
    return tuple((value,) for value in values)


_FROST = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
_QUALITIES = _each(80, 65, 58, 50, 40)

# Parameters of CIFAR-10-C (arXiv 1903.12261), which differ from those of ImageNet-C.
KINDS = {
    "gaussian_noise": Kind(_each(0.04, 0.06, 0.08, 0.09, 0.10), noise.gaussian_noise),
    "shot_noise": Kind(_each(500, 250, 100, 75, 50), noise.shot_noise, noise.shot_constants),
    "impulse_noise": Kind(_each(0.01, 0.02, 0.03, 0.05, 0.07), noise.impulse_noise),
    "defocus_blur": Kind(
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        blur.filtered,
        blur.defocus_constants,
    ),
    "glass_blur": Kind(
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        blur.glass,
        blur.glass_constants,
    ),
    "motion_blur": Kind(
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), blur.motion, blur.motion_constants
    ),
    "zoom_blur": Kind(_each(1.06, 1.11, 1.16, 1.21, 1.26), blur.zoom, blur.zoom_constants),
    "snow": Kind(
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        weather.snow,
        weather.snow_constants,
    ),
    "frost": Kind(_FROST, weather.frost, one_channel=False),
    "fog": Kind(((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), weather.fog),
    "brightness": Kind(
        _each(0.05, 0.1, 0.15, 0.2, 0.3), digital.brightness, digital.brightness_constants
    ),
    "contrast": Kind(_each(0.75, 0.5, 0.4, 0.3, 0.15), digital.contrast),
    "elastic_transform": Kind(
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        digital.elastic_transform,
        digital.elastic_constants,
    ),
    "pixelate": Kind(
        _each(0.95, 0.9, 0.85, 0.75, 0.65), digital.pixelate, digital.pixelate_constants
    ),
    "jpeg_compression": Kind(_QUALITIES, on_host=jpeg.through_pillow),
    "speckle_noise": Kind(_each(0.06, 0.1, 0.12, 0.16, 0.2), noise.speckle_noise),
    "gaussian_blur": Kind(_each(0.4, 0.6, 0.7, 0.8, 1), blur.filtered, blur.gaussian_constants),
    "spatter": Kind(
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        spatter.spatter,
        spatter.spatter_constants,
        one_channel=False,
    ),
    "saturate": Kind(
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), digital.saturate, one_channel=False
    ),
    "frost_procedural": Kind(_FROST, weather.frost_procedural, one_channel=False),
    "jpeg_on_device": Kind(_QUALITIES, jpeg.jpeg, jpeg.jpeg_constants),
}

NAMES = tuple(KINDS)[:15]
"""The fifteen standard corruptions."""
EXTRA_NAMES = tuple(KINDS)[15:19]
"""The four extra ones, meant for tuning."""
OWN_NAMES = tuple(KINDS)[19:]
"""Our own: `frost_procedural`, which needs no photographs, and `jpeg_on_device`."""
EVALUATED_NAMES = tuple("frost_procedural" if name == "frost" else name for name in NAMES)
"""The fifteen standard ones with `frost_procedural` instead of `frost`, which needs photographs.
Scores over them are not comparable to published ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Corruption:
    """A corruption at one severity, called as `corruption(key, images)`; see `make`.

    Attributes:
      name: one of `NAMES`, `EXTRA_NAMES` or `OWN_NAMES`.
      severity: 1 to 5.
      parameters: the parameters at this severity.
      any_size: whether it accepts images of other sizes than 32x32x3.
      options: text that identifies any other options the result depends on; `""` for none.
    """

    name: str
    severity: int
    parameters: tuple[float, ...]
    any_size: bool
    options: str
    _kind: Kind = dataclasses.field(repr=False)

    def __call__(
        self, key: jax.Array, images_bhwc: Any, index: Any = None
    ) -> np.ndarray | jax.Array:
        """Returns the corrupted images.

        The randomness of an image depends on the key, the name, the severity and its index, so the
        result is the same, bit for bit, in every batch. For this, images are processed in chunks
        of a fixed size by one compiled program.

        Args:
          key: a typed key of `jax.random.key`, of its default kind.
          images_bhwc: uint8 levels [b, 32, 32, 3]; with `any_size` also other sizes of at least 8,
            and [b, h, w, 1] for corruptions that do not need colour.
          index: int [b], the index of each image in its set; by default 0, 1, ...

        Returns:
          uint8 with the shape of the images: a NumPy array, or a traced one under `jax.jit`.

        Raises:
          UsageError: images of another dtype or shape; an invalid index; a key of another kind;
            `jpeg_compression`, which runs on the host, under `jax.jit`.
        """
        _require_key(key)
        if not isinstance(images_bhwc, jax.Array):
            images_bhwc = np.asarray(images_bhwc)
        self.require_images(images_bhwc)
        index = _index(index, len(images_bhwc))
        if self._kind.on_host is not None:
            if isinstance(images_bhwc, jax.core.Tracer):
                raise UsageError(
                    f"{self.name} runs on the host and cannot be traced; call it outside jax.jit, "
                    "or use 'jpeg_on_device'"
                )
            return self._kind.on_host(np.asarray(images_bhwc), *self.parameters)
        constants = self._kind.constants(images_bhwc.shape[1:3], *self.parameters)
        constants = jax.tree.map(jnp.asarray, constants)
        traced = any(isinstance(a, jax.core.Tracer) for a in (key, images_bhwc, index))
        key = named(key, "corruption", self.name, self.severity)
        run = functools.partial(_corrupt_chunk, self._kind.function, constants, key)
        return (_in_traced_chunks if traced else _in_chunks)(run, images_bhwc, index)

    def require_images(self, images_bhwc: Any) -> None:
        """Checks the dtype and shape of images.

        Raises:
          UsageError: the corruption does not accept them.
        """
        if images_bhwc.dtype != np.uint8:
            raise UsageError(
                f"{self.name} of images of dtype {images_bhwc.dtype}; expected uint8 levels from 0 "
                "to 255: corrupt images before converting them to floats"
            )
        if images_bhwc.ndim != 4:
            raise UsageError(f"images of shape {images_bhwc.shape}; expected [b, h, w, c]")
        h, w, c = images_bhwc.shape[1:]
        channels = (1, 3) if self.any_size and self._kind.one_channel else (3,)
        if c not in channels:
            also = "; with any_size=True also 1" if self._kind.one_channel else ""
            raise UsageError(
                f"{self.name} of images with {c} channels; expected "
                f"{' or '.join(map(str, channels))}{'' if self.any_size else also}"
            )
        if (h, w) != (SIZE, SIZE) and not self.any_size:
            raise UsageError(
                f"{self.name} of {h}x{w} images; its parameters are for {SIZE}x{SIZE}: pass "
                "any_size=True to use them unchanged on another size"
            )
        if min(h, w) < SMALLEST:
            raise UsageError(
                f"{self.name} of {h}x{w} images; expected at least {SMALLEST}x{SMALLEST}"
            )


def make(
    name: str,
    severity: int,
    *,
    any_size: bool = False,
    frost_folder: str | os.PathLike[str] | None = None,
    swap: bool = False,
) -> Corruption:
    """Returns the corruption of this name and severity: `(key, images_u8_bhwc) -> images_u8_bhwc`.

    Args:
      name: one of `NAMES`, `EXTRA_NAMES` and `OWN_NAMES`.
      severity: 1 to 5.
      any_size: also accept images that are not 32x32x3: at least 8x8, and with one channel, except
        for frost, spatter and saturate, which need colour. Parameters are in pixels, as for 32x32;
        those of `elastic_transform` and `pixelate` are fractions of the side.
      frost_folder: only for `frost`: a folder of photographs of frost (PNG or JPEG) at least five
        times as wide and high as the images. This library includes none.
      swap: only for `glass_blur`: really swap pixels, as the published code intends but does not.

    Raises:
      UsageError: an unknown name; a severity that is not 1 to 5; `frost` without photographs.

    >>> grey = np.full((1, 32, 32, 3), 100, np.uint8)
    >>> brighter = make("brightness", 5)(jax.random.key(0), grey)
    >>> brighter[0, 0, 0].tolist()
    [176, 176, 176]
    """
    if name not in KINDS:
        raise UsageError(
            f"no corruption {name!r}{nearest(name, KINDS)} (known: {', '.join(KINDS)})"
        )
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise UsageError(f"severity={severity!r} of {name}; expected an integer from 1 to 5")
    kind, options = KINDS[name], ""
    if name == "glass_blur" and swap:
        kind, options = dataclasses.replace(kind, function=blur.glass_swapped), "swap"
    if name == "frost":
        if frost_folder is None:
            raise UsageError(
                "frost needs photographs: pass frost_folder=, a folder of PNG or JPEG files, or "
                "use 'frost_procedural', which generates a pattern"
            )
        photos = weather.frost_photos(frost_folder)
        kind = dataclasses.replace(kind, constants=functools.partial(_with_photos, photos))
        options = hashlib.blake2b(b"".join(a.tobytes() for a in photos), digest_size=8).hexdigest()
    parameters = kind.parameters[int(severity) - 1]
    return Corruption(name, int(severity), parameters, any_size, options, kind)


def corrupt(
    images_bhwc: Any, name: str, severity: int, *, index: Any = None, seed: int = 0, **options: Any
) -> np.ndarray | jax.Array:
    """Applies `make(name, severity, **options)` to images, with the key of a seed.

    >>> images = np.zeros((2, 32, 32, 3), np.uint8)
    >>> one = corrupt(images[1:], "gaussian_noise", 3, index=[1])
    >>> bool((one == corrupt(images, "gaussian_noise", 3)[1:]).all())
    True
    """
    key = jax.random.key(seed, impl=KEY_KIND)
    return make(name, severity, **options)(key, images_bhwc, index)


def _with_photos(
    photos: tuple[np.ndarray, ...], size: tuple[int, int], *parameters: float
) -> tuple[Any, ...]:
    weather.require_photos_of_size(photos[1], size)
    return *_numbers(size, *parameters), *photos


def _require_key(key: Any) -> None:
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise UsageError(f"a key of type {type(key).__name__}; expected a jax.random.key(seed)")
    kind = str(jax.random.key_impl(key))
    if kind != KEY_KIND or key.shape:
        raise UsageError(
            f"a key of kind {kind} and shape {key.shape}; expected one key of kind {KEY_KIND}, "
            f"whose draws do not depend on the batch: jax.random.key(seed, impl={KEY_KIND!r})"
        )


def _index(index: Any, num_images: int) -> Any:
    if index is None:
        return np.arange(num_images, dtype=np.uint32)
    if not isinstance(index, jax.Array):
        index = np.asarray(index)
    traced = isinstance(index, jax.core.Tracer)
    integers = index.dtype != bool and jnp.issubdtype(index.dtype, jnp.integer)
    if not integers or index.shape != (num_images,) or (not traced and (index < 0).any()):
        raise UsageError(
            f"an index of dtype {index.dtype} and shape {index.shape} for {num_images} images; "
            "expected a non-negative integer for each"
        )
    return index.astype(np.uint32)


@functools.partial(jax.jit, static_argnums=0)
def _corrupt_chunk(
    function: Callable[..., jax.Array],
    constants: tuple,
    key: jax.Array,
    images_bhwc: jax.Array,
    index: jax.Array,
) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(lambda key, image_hwc: function(key, image_hwc, *constants))(keys, images_bhwc)


def _chunk_and_fill(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the number of images per chunk, and the padding of the last chunk.

    The chunk size depends on the image size only: with another batch size, the compiler may sum in
    another order.
    """
    n, h, w, _ = shape
    chunk = min(max(CHUNK * SIZE**2 // (h * w), 1), CHUNK)
    return chunk, -n % chunk


def _in_traced_chunks(
    run: Callable[[Any, Any], jax.Array], images_bhwc: Any, index: Any
) -> jax.Array:
    chunk, fill = _chunk_and_fill(images_bhwc.shape)
    padded = jnp.pad(images_bhwc, ((0, fill), (0, 0), (0, 0), (0, 0)))
    chunks = padded.reshape(-1, chunk, *padded.shape[1:])
    numbers = jnp.pad(index, (0, fill)).reshape(-1, chunk)
    done = jax.lax.map(lambda pair: run(*pair), (chunks, numbers))
    return done.reshape(padded.shape)[: len(images_bhwc)]


def _in_chunks(run: Callable[[Any, Any], jax.Array], images_bhwc: Any, index: Any) -> np.ndarray:
    images_bhwc, index = np.asarray(images_bhwc), np.asarray(index)
    chunk, fill = _chunk_and_fill(images_bhwc.shape)
    running = []
    for at in range(0, len(images_bhwc), chunk):
        part, numbers = images_bhwc[at : at + chunk], index[at : at + chunk]
        if len(part) < chunk:
            part = np.pad(part, ((0, fill), (0, 0), (0, 0), (0, 0)))
            numbers = np.pad(numbers, (0, fill))
        running.append(run(part, numbers))
    out_bhwc = np.empty_like(images_bhwc)
    for i, done in enumerate(running):
        part = out_bhwc[i * chunk : (i + 1) * chunk]
        part[:] = np.asarray(done)[: len(part)]
    return out_bhwc
