"""Devices that are planned for and need not be there: TPU topologies, and virtual ones."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from jaxlab.core import CHIPS, Chip, UsageError, chip, nearest

MAX_VIRTUAL = 2048
"""Virtual CPU devices that one process can have."""


@dataclasses.dataclass(frozen=True)
class Pod:
    """Devices to compile for, and the chips that they stand for.

    Attributes:
      name: for people.
      devices: of JAX.
      chip: what is known of each chip; None where it was not named.
      num_chips: a TPU v4 has two devices a chip, all others one.
      price: of one chip for an hour, in whatever currency; None where it was not given.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    num_chips: int
    price: float | None = None

    @property
    def share(self) -> float:
        """The part of a chip that one device is."""
        return self.num_chips / len(self.devices)

    @property
    def platform(self) -> str:
        """What programs for it run on."""
        return self.devices[0].platform if self.chip is None else self.chip.platform


def tpu_pod(topology: str, price: float | None = None) -> Pod:
    """A TPU topology such as `v5e:16x16`, for the real compiler; it needs libtpu and no TPU.

    Raises:
      UsageError: libtpu is not installed; a topology that there is not.
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

    # Nobody is asked whether this machine is a TPU's, logs stay away, and others may plan as well.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    try:
        with silent_stderr():
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        words = " ".join(str(error).split())[:160]
        raise UsageError(f"--topology={topology} is not one of {name}: {words}") from None
    chips = len({tuple(device.coords) for device in found})
    return Pod(topology, tuple(found), known[name], chips, price)


def virtual_pod(count: int, hardware: str | None = None, price: float | None = None) -> Pod:
    """The virtual CPU devices of this process, which stand for as many chips of a kind.

    Raises:
      UsageError: a chip that is not known.
    """
    stands_for = None if hardware is None else chip(hardware)
    name = f"{count} virtual devices" + ("" if stands_for is None else f" for {stands_for.name}")
    return Pod(name, tuple(jax.devices()), stands_for, count, price)


@contextlib.contextmanager
def silent_stderr(until_it_fails: bool = False) -> Iterator[None]:
    """Keeps what C++ says on the standard error stream to itself, or shows it upon an error."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(saved, said.read() if until_it_fails else b"")
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
