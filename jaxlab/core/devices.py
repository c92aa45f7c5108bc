"""Which devices a program is made for: those of this process, or others that are planned for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import jax

_devices: contextvars.ContextVar[tuple[Any, ...] | None] = contextvars.ContextVar(
    "devices", default=None
)
_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def use_devices(devices: Sequence[Any], platform: str | None = None) -> Iterator[None]:
    """Within this context `make_mesh` takes these devices and `platform` is theirs.

    Args:
      devices: devices of one kind; those of a TPU topology can be compiled for without a TPU.
      platform: what programs are made for, where it is not what the devices are: virtual CPU
        devices that stand for GPUs.
    """
    devices = tuple(devices)
    tokens = _devices.set(devices), _platform.set(platform or devices[0].platform)
    try:
        yield
    finally:
        _devices.reset(tokens[0])
        _platform.reset(tokens[1])


def all_devices() -> list[Any]:
    """The devices of `use_devices`; outside of it, all that JAX has."""
    devices = _devices.get()
    return jax.devices() if devices is None else list(devices)


def platform() -> str:
    """What is traced here will run on: 'cpu', 'tpu' or 'gpu'.

    The platform of `use_devices`, else that of the mesh of `use_mesh`, else JAX's default backend.
    """
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def on_platform_of(device: Any) -> Iterator[None]:
    """Within this context `platform` is that of the device, unless `use_devices` says another."""
    if _devices.get() is not None:
        yield
        return
    token = _platform.set(device.platform)
    try:
        yield
    finally:
        _platform.reset(token)
