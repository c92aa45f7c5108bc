"""Named random keys: `named(key, 'dropout', step)` is independent of `named(key, 'init')`."""

from __future__ import annotations

import zlib

import jax


def named(key: jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """Derives a key by folding in numbers and names (as checksums, the same in every process).

    Args:
      key: a typed key of `jax.random.key`.
      names: strings, integers in [0, 2**32), or traced integer scalars such as a step.

    >>> import jax
    >>> a, b = named(jax.random.key(0), 'dropout', 3), named(jax.random.key(0), 'dropout', 4)
    >>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
    False
    """
    for name in names:
        key = jax.random.fold_in(key, _checksum(name) if isinstance(name, str) else name)
    return key


def _checksum(name: str) -> int:
    # The upper half of uint32, which no step number reaches: names never collide with numbers.
    return zlib.crc32(name.encode()) | 1 << 31
