"""Flat trees: one dict from '/'-joined paths to arrays, in natural order.

Parameters are `{'blocks/2/mlp/up/kernel': ..., 'blocks/10/mlp/up/kernel': ...}` everywhere. Subsets
are selected by shell-style patterns over the paths, in which `*` also matches '/':
`'blocks/*/mlp/*'`, `'*/kernel'`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from jaxlab.core.errors import UsageError, nearest

T = TypeVar("T")


def natural_key(path: str) -> tuple:
    """A sort key that puts 'blocks/2' before 'blocks/10'.

    >>> sorted(['b/10', 'b/2', 'a'], key=natural_key)
    ['a', 'b/2', 'b/10']
    """
    parts = re.split(r"(\d+)", path)
    return tuple((1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts)


def natural_sort(flat: Mapping[str, T]) -> dict[str, T]:
    """Returns the mapping with its paths in natural order."""
    return {path: flat[path] for path in sorted(flat, key=natural_key)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts into one dict with '/'-joined paths; anything else is a leaf.

    Raises:
      UsageError: two leaves have the same path (keys may contain '/').

    >>> flatten({'a': {'b': 1}, 'c': 2})
    {'a/b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        inner = flatten(value, path + "/") if isinstance(value, Mapping) else {path: value}
        for twice in flat.keys() & inner.keys():
            raise UsageError(f"two leaves have the path {twice!r}; rename a key with a '/'")
        flat.update(inner)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`.

    Raises:
      UsageError: a path is both a leaf and the parent of another.

    >>> unflatten({'a/b': 1, 'c': 2})
    {'a': {'b': 1}, 'c': 2}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"a parent of {path!r} is also a leaf; rename one of them")
        if name in node:
            raise UsageError(f"{path!r} is both a leaf and a parent; rename one of them")
        node[name] = value
    return tree


def matches(path: str, patterns: str | Iterable[str]) -> bool:
    """Returns whether `path` matches any of the patterns.

    >>> matches('blocks/0/mlp/up/kernel', ['*/kernel'])
    True
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def select(paths: Iterable[str], patterns: str | Iterable[str]) -> dict[str, bool]:
    """Marks the paths that match any of the patterns.

    Raises:
      UsageError: a pattern matches no path; suggests the nearest path.

    >>> select(['a/kernel', 'a/bias'], '*/kernel')
    {'a/kernel': True, 'a/bias': False}
    """
    paths = list(paths)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise UsageError(f"pattern {pattern!r} matches no parameter{nearest(pattern, paths)}")
    return {path: matches(path, patterns) for path in paths}
