"""Images in folders, one sub-folder a class."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxlab.core import UsageError
from jaxlab.data.array_cache import cached_arrays
from jaxlab.data.files import existing_folder, files_below, read_file
from jaxlab.data.images.image_decoding import decode_images
from jaxlab.data.images.image_set import ImageSet


class ImageFolder(ImageSet):
    """The images in a folder that has one sub-folder a class, decoded by Pillow.

    Classes are the sub-folders by name; the images of one are all files in it and below it, by
    path. Hidden files and folders are left out, and so are files beside the sub-folders that are no
    images. How a camera was held (EXIF) is not looked at.

    Args:
        path: the folder.
        size: (height, width) to which all images are resized, bilinear and anti-aliased, whatever
            their shape was; None: they must have one size.
        channels: 1 (grey), 3 (RGB) or 4 (with alpha), to which all are converted; None: 1 if all
            are grey, or else 3.
        cache_dir: a folder in which the decoded images are kept, for the next time; None: nowhere.
            Files that have another size or time, or others, are decoded afresh.
        name: of the set; None: the name of the folder.

    Attributes:
        files: the path of each image, below the folder.

    Raises:
        UsageError: no such folder, one without sub-folders, a sub-folder without images, images
            beside the sub-folders; images of more than one size without `size` (names two); a file
            that is no image (named).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ):
        root = existing_folder(path, "a folder with one sub-folder of images a class")
        if channels not in (None, 1, 3, 4):
            raise UsageError(f"channels={channels}; expected 1, 3, 4 or None")
        found = {folder.name: _visible_files(folder) for folder in _class_folders(root)}
        for class_name, inside in found.items():
            if not inside:
                raise UsageError(
                    f"sub-folder {class_name!r} of {str(root)!r} holds no image; expected one "
                    f"sub-folder a class: fill it or take it out"
                )
        files = [file for inside in found.values() for file in inside]
        self.files = tuple(file.relative_to(root).as_posix() for file in files)

        def decode() -> dict[str, np.ndarray]:
            names = [repr(str(file)) for file in files]
            images = decode_images(
                lambda numbers: [read_file(files[i]) for i in numbers],
                names,
                channels=channels,
                size=size,
            )
            return {"images": images}

        name = root.resolve().name if name is None else name
        key = {"files": _signs(root, files), "size": size, "channels": channels}
        super().__init__(
            cached_arrays(cache_dir, name, key, decode)["images"],
            np.repeat(np.arange(len(found)), [len(inside) for inside in found.values()]),
            class_names=list(found),
            name=name,
        )


def _class_folders(root: pathlib.Path) -> list[pathlib.Path]:
    from PIL import Image

    there = sorted(root.iterdir(), key=lambda p: p.name)
    entries = [p for p in there if not p.name.startswith(".")]
    folders = [p for p in entries if p.is_dir()]
    loose = [p for p in entries if p.suffix.lower() in Image.registered_extensions()]
    loose = [p for p in loose if p.is_file()]
    if loose or not folders:
        found = f"{loose[0].name!r} beside" if loose else "no"
        raise UsageError(
            f"{str(root)!r} has {found} sub-folders; expected one sub-folder a class, with its "
            f"images in it"
        )
    return folders


def _visible_files(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = [(p, p.relative_to(folder).parts) for p in files_below(folder)]
    return [p for p, parts in paths if not any(part.startswith(".") for part in parts)]


def _signs(root: pathlib.Path, files: Sequence[pathlib.Path]) -> list[list[str | int]]:
    """What changes when a file does: its path, size and time."""
    seen = [(file, file.stat()) for file in files]
    return [[file.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns] for file, s in seen]
