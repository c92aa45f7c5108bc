"""Named random keys: `named(key, 'dropout', step)` never collides with `named(key, 'init')`."""

from __future__ import annotations

import zlib

import jax


def named(key: jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """Derives a key by folding in names (by a checksum that is the same in every process) and numbers.

    Args:
      key: a typed key of `jax.random.key`.
      names: strings, Python integers, or traced integer scalars such as a step.

    >>> import jax
    >>> a, b = named(jax.random.key(0), 'dropout', 3), named(jax.random.key(0), 'dropout', 4)
    >>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
    False
    """
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
