"""Devices to plan for without having them: TPU topologies and virtual CPU devices."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxlab.core import CHIPS, Chip, UsageError, chip, nearest

MAX_VIRTUAL = 2048
"""The most virtual CPU devices of one process."""


@dataclasses.dataclass(frozen=True)
class Pod:
    """Devices to compile for, and the chips they represent.

    Attributes:
      name: shown to the user.
      devices: JAX devices.
      chip: the specification of each chip; None if none was named.
      num_chips: chips in all; a TPU v4 has two devices a chip, all others one.
      price: of one chip for an hour, in any currency; None if unknown.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    num_chips: int
    price: float | None = None

    @property
    def share(self) -> float:
        """Chips per device: 1/2 on a TPU v4, else 1."""
        return self.num_chips / len(self.devices)

    @property
    def platform(self) -> str:
        """The platform of the chips: cpu, gpu or tpu."""
        return self.devices[0].platform if self.chip is None else self.chip.platform


def tpu_pod(topology: str, price: float | None = None) -> Pod:
    """A TPU topology such as `v5e:16x16`, to compile for with the TPU compiler; needs no TPU.

    Args:
      topology: `CHIP:LAYOUT`, the layout in chips.
      price: of one chip for an hour.

    Raises:
      UsageError: libtpu is not installed; an unknown topology.
    """
    name, _, layout = topology.partition(":")
    known = {c.name: c for c in CHIPS.values() if c.platform == "tpu"}
    if name not in known or not re.fullmatch(r"\d+(x\d+){1,2}", layout):
        raise UsageError(
            f"--topology={topology}; it takes CHIP:LAYOUT, such as v5e:16x16 or v4:8x8x8; chips: "
            f"{', '.join(known)}{nearest(name, known)}"
        )
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UsageError(
            "--topology needs the TPU compiler, which comes with libtpu: pip install 'jax[tpu]' "
            "(Linux on x86-64); --devices=N plans without it"
        ) from None
    from jax.experimental import topologies

    # Don't query the metadata server, don't log, and let other processes load libtpu too.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    try:
        with silent_stderr():
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        words = " ".join(str(error).split())[:160]
        raise UsageError(f"--topology={topology} is not one of {name}: {words}") from None
    devices: Sequence[Any] = described.devices
    chips = len({tuple(device.coords) for device in devices})
    return Pod(topology, tuple(devices), known[name], chips, price)


def virtual_pod(count: int, hardware: str | None = None, price: float | None = None) -> Pod:
    """The virtual CPU devices of this process, each representing one chip.

    Args:
      count: their number.
      hardware: the chip that they represent, such as `H100`; None leaves the time unknown.
      price: of one chip for an hour.

    Raises:
      UsageError: an unknown chip.
    """
    stands_for = None if hardware is None else chip(hardware)
    name = f"{count} virtual devices" + ("" if stands_for is None else f" for {stands_for.name}")
    return Pod(name, tuple(jax.devices()), stands_for, count, price)


@contextlib.contextmanager
def silent_stderr(until_it_fails: bool = False) -> Iterator[None]:
    """Discards what C++ code writes to standard error.

    Args:
      until_it_fails: write it out after all if the block raises.
    """
    saved = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            written.seek(0)
            os.write(saved, written.read() if until_it_fails else b"")
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
