"""Images in a folder with one sub-folder per class."""

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
    """The images in a folder with one sub-folder per class, decoded by Pillow.

    Classes are the sub-folders, sorted by name; their images are all files in them, recursively,
    sorted by path. Hidden files and folders are left out, and so are files next to the sub-folders
    that are not images. EXIF orientation is ignored.

    Args:
        path: the folder.
        size: (height, width) to resize all images to, bilinear with anti-aliasing, whatever their
            aspect ratio; None: they must all have the same size.
        channels: convert to 1 (grey), 3 (RGB) or 4 channels (with alpha); None: 1 if all are grey,
            else 3.
        cache_dir: a folder that caches the decoded images, which are decoded again when the files
            change in name, size or time; None: no cache.
        name: the name of the set; None: that of the folder.

    Attributes:
        files: the path of each image, relative to the folder.

    Raises:
        UsageError: the folder is missing or has no sub-folders; a sub-folder has no images; images
            lie next to the sub-folders; images differ in size and `size` is None; a file is not an
            image.
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
        root = existing_folder(path, "a folder with one sub-folder of images per class")
        if channels not in (None, 1, 3, 4):
            raise UsageError(f"channels={channels}; expected 1, 3, 4 or None")
        by_class = {folder.name: _visible_files(folder) for folder in _class_folders(root)}
        for class_name, inside in by_class.items():
            if not inside:
                raise UsageError(
                    f"sub-folder {class_name!r} of {str(root)!r} has no images; expected one "
                    f"sub-folder per class: fill or remove it"
                )
        files = [file for inside in by_class.values() for file in inside]
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
        key = {"files": _file_stats(root, files), "size": size, "channels": channels}
        super().__init__(
            cached_arrays(cache_dir, name, key, decode)["images"],
            np.repeat(np.arange(len(by_class)), [len(inside) for inside in by_class.values()]),
            class_names=list(by_class),
            name=name,
        )


def _class_folders(root: pathlib.Path) -> list[pathlib.Path]:
    from PIL import Image

    by_name = sorted(root.iterdir(), key=lambda p: p.name)
    entries = [p for p in by_name if not p.name.startswith(".")]
    folders = [p for p in entries if p.is_dir()]
    loose = [p for p in entries if p.suffix.lower() in Image.registered_extensions()]
    loose = [p for p in loose if p.is_file()]
    if loose or not folders:
        problem = f"{loose[0].name!r} next to its" if loose else "no"
        raise UsageError(
            f"{str(root)!r} has {problem} sub-folders; expected one sub-folder per class, with its "
            f"images in it"
        )
    return folders


def _visible_files(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = [(p, p.relative_to(folder).parts) for p in files_below(folder)]
    return [p for p, parts in paths if not any(part.startswith(".") for part in parts)]


def _file_stats(root: pathlib.Path, files: Sequence[pathlib.Path]) -> list[list[str | int]]:
    """Returns the path, size and modification time of each file."""
    stats = [(file, file.stat()) for file in files]
    return [[file.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns] for file, s in stats]
