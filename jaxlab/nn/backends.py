"""Backends by name."""

from __future__ import annotations

from jaxlab.core import UsageError, nearest
from jaxlab.nn.backend import PLAIN, Backend
from jaxlab.nn.cpu.backend import CompiledBackend
from jaxlab.nn.tpu.backend import PallasBackend

BACKENDS: dict[str, Backend] = {
    each.name: each for each in (PLAIN, PallasBackend(), CompiledBackend())
}
"""`plain`: JAX operations. `pallas`: windows read by a fused kernel, on TPUs. `compiled`: products
and attention in C++, on CPUs."""


def known_backend(name: str) -> Backend:
    """The backend of that name, which may not run here.

    Raises:
      UsageError: an unknown name; names the nearest.
    """
    if name not in BACKENDS:
        raise UsageError(
            f"no backend {name!r}{nearest(name, BACKENDS)}; there are {', '.join(BACKENDS)}"
        )
    return BACKENDS[name]


def make_backend(name: str) -> Backend:
    """The backend of that name, ready to run: `compiled` builds its library if need be.

    Raises:
      UsageError: an unknown name; a platform that the backend does not run on; for `compiled`, no
        C++ compiler or one that fails.

    >>> make_backend("plain")
    Backend()
    """
    backend = known_backend(name)
    backend.require_platform()
    return backend
