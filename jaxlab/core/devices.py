"""The devices that programs are compiled for: those of this process, or a planned topology."""

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
    """A context in which `make_mesh` uses these devices and `platform` returns theirs.

    Args:
      devices: devices of one kind; those of a TPU topology can be compiled for without a TPU.
      platform: the platform to compile for, if it is not that of the devices: virtual CPU devices
        can stand in for GPUs.
    """
    devices = tuple(devices)
    tokens = _devices.set(devices), _platform.set(platform or devices[0].platform)
    try:
        yield
    finally:
        _devices.reset(tokens[0])
        _platform.reset(tokens[1])


def all_devices() -> list[Any]:
    """Returns the devices of `use_devices`; outside of it, all JAX devices."""
    devices = _devices.get()
    return jax.devices() if devices is None else list(devices)


def platform() -> str:
    """Returns the platform that code traced here will run on: 'cpu', 'tpu' or 'gpu'.

    It is the platform of `use_devices`, else that of the mesh of `use_mesh`, else JAX's default
    backend.
    """
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def on_platform_of(device: Any) -> Iterator[None]:
    """A context in which `platform` returns that of the device, unless `use_devices` set it."""
    if _devices.get() is not None:
        yield
        return
    token = _platform.set(device.platform)
    try:
        yield
    finally:
        _platform.reset(token)
