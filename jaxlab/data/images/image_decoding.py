"""Decoding image files into one array of levels, with Pillow on several threads."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxlab.core import UsageError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = frozenset({"1", "L"})
_COLOUR = frozenset({"CMYK", "HSV", "P", "RGB", "YCbCr"})
_ALPHA = frozenset({"LA", "PA", "RGBA"})
_CHUNK = 128
_THREADS = 4


def decode_image(
    data: bytes, what: str, *, channels: int | None = None, size: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """Returns the levels uint8 [h, w, c] of an encoded image.

    Args:
        data: the content of a file in any format that Pillow reads.
        what: the name of the image in errors.
        channels: convert to 1 (grey), 3 (RGB) or 4 channels (with alpha); None: 1 for grey images
            and 3 for colour.
        size: (height, width) to resize to, bilinear with anti-aliasing.

    Raises:
        UsageError: `data` is not an image or is damaged; it has more than 8 bits per channel, or is
            neither grey nor colour; it has an alpha channel and `channels` is None.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as file:
            image: Image.Image = file
            if image.mode not in _GREY | _COLOUR | _ALPHA:
                raise UsageError(
                    f"{what} has the mode {image.mode!r}; expected 8 bits per channel, grey or "
                    f"RGB: convert the file"
                )
            mode = _MODES[channels] if channels else _native_mode(image, what)
            if image.mode != mode:
                image = image.convert(mode)
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            levels = np.asarray(image)
    except UsageError:
        raise
    except Exception as error:  # Pillow raises whatever its format plugins raise
        known = not isinstance(error, UnidentifiedImageError)
        reason = (str(error) or type(error).__name__) if known else "unknown to Pillow"
        raise UsageError(
            f"{what} cannot be decoded as an image ({reason}); repair or remove it"
        ) from error
    return levels if levels.ndim == 3 else levels[:, :, None]


def decode_images(
    read: Callable[[Sequence[int]], Sequence[bytes]],
    names: Sequence[str],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decodes many images into one array uint8 [n, h, w, c].

    Args:
        read: returns the files with the given numbers; called on several threads.
        names: the name of each image in errors, one per image.
        channels: as for `decode_image`; None: 1 if all images are grey, else 3.
        size: as for `decode_image`; None: all images must have the same size.

    Raises:
        UsageError: `size` is not a height and a width; an image cannot be decoded, or differs in
            size from the first.
    """
    require_size(size)

    def decode(numbers: range) -> list[npt.NDArray[np.uint8]]:
        files = read(numbers)
        return [
            decode_image(data, names[i], channels=channels, size=size)
            for i, data in zip(numbers, files, strict=True)
        ]

    chunks = [range(a, min(a + _CHUNK, len(names))) for a in range(0, len(names), _CHUNK)]
    images = np.empty((0, 0, 0, 0), np.uint8)
    for i, image in enumerate(_in_order(decode, chunks)):
        if i == 0:
            images = np.empty((len(names), *image.shape), np.uint8)
        if image.shape[:2] != images.shape[1:3]:
            (height, width), (other_height, other_width) = images.shape[1:3], image.shape[:2]
            raise UsageError(
                f"images differ in size: {names[0]} has {height}x{width} pixels, {names[i]} has "
                f"{other_height}x{other_width}; pass size=(height, width) to resize all"
            )
        if image.shape[2] > images.shape[3]:  # the first colour image after grey ones
            images = np.repeat(images, image.shape[2], axis=3)
        images[i] = image
    return images


def _in_order(decode: Callable[[range], list[Any]], chunks: list[range]) -> Iterator[Any]:
    pool = ThreadPoolExecutor(_THREADS, "decode")
    try:
        for images in pool.map(decode, chunks):
            yield from images
    finally:
        pool.shutdown(cancel_futures=True)


def _native_mode(image: Any, what: str) -> str:
    if image.mode in _ALPHA or "transparency" in image.info:
        raise UsageError(
            f"{what} has an alpha channel; pass channels=3 (or 1) to drop it, 4 to keep it"
        )
    return "L" if image.mode in _GREY else "RGB"


def require_size(size: tuple[int, int] | None) -> None:
    """Checks that `size` is a height and a width, or None.

    Raises:
        UsageError: it is not.
    """
    if size is None:
        return
    if not isinstance(size, (tuple, list)) or len(size) != 2 or min(size) < 1:
        raise UsageError(f"size={size}; expected (height, width) of at least 1 pixel, or None")
