"""Atomic writes of files, and plain JSON."""

from __future__ import annotations

import json
import math
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from jaxlab.core import WriteError


def plain(value: Any) -> Any:
    """Converts `value` to types that strict JSON can represent.

    Mappings, lists and tuples are converted recursively; arrays and scalars of NumPy and JAX become
    Python numbers and lists. JSON has no NaN or infinity: they become None (`null`).

    Raises:
      TypeError: any other type.

    >>> plain({"loss": float("nan"), "widths": (64, 128)})
    {'loss': None, 'widths': [64, 128]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(
        f"{type(value).__name__} {value!r} cannot be written as JSON; pass numbers, strings, "
        "booleans, None, or lists and dicts of them"
    )


def replace_file(path: str | os.PathLike[str], content: str | bytes) -> pathlib.Path:
    """Writes `content` atomically: a reader sees the old file or the new one, never a part.

    Text is written as UTF-8. If writing fails, the old file is intact and nothing is left over.

    Raises:
      WriteError: the file cannot be written.
    """
    path = pathlib.Path(path)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(scratch, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise WriteError(path.name, path, error, "the old file is intact") from error
    finally:
        scratch.unlink(missing_ok=True)
    return path


def replace_json(path: str | os.PathLike[str], value: Any) -> pathlib.Path:
    """Writes `plain(value)` atomically as indented strict JSON."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return replace_file(path, text + "\n")


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not UTF-8 or not a JSON object.
    """
    value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    return value
