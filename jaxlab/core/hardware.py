"""Accelerators by name, with published peak rates, memory and bandwidths."""

from __future__ import annotations

import dataclasses

from jaxlab.core.errors import UsageError, nearest

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; all rates are theoretical peaks.

    Attributes:
      name: its name on the command line.
      platform: 'tpu' or 'gpu'.
      flops: bfloat16 FLOP/s of dense matrix products.
      memory: bytes of memory.
      memory_bandwidth: bytes/s between the chip and its memory.
      link_bandwidth: bytes/s that it can send over all its links together.
      group: the largest number of chips connected by links: a pod, or the GPUs of a server.
      network_bandwidth: bytes/s that it can send to chips of another group; 0: not published.
    """

    name: str
    platform: str
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    group: int
    network_bandwidth: float = 0.0


CHIPS = {
    chip.name: chip
    for chip in (
        # cloud.google.com/tpu/docs/v4; its links (6 of 50 GB/s) are in table 4 of arXiv 2304.01433.
        Chip("v4", "tpu", 275e12, 32 * GIB, 1200 * GB, 300 * GB, 4096),
        # cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB, 819 GBps, 1600 Gbps (400 GBps in both
        # directions), 256 chips in a 2D torus.
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819 * GB, 200 * GB, 256),
        # cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GB, 2765 GBps, 4800 Gbps (1200 GBps in both
        # directions); the largest job has 6144 of the pod's 8960 chips.
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765 * GB, 600 * GB, 6144),
        # cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB, 1600 GBps, 3200 Gbps (800 GBps in both
        # directions), 256 chips in a 2D torus.
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1600 * GB, 400 * GB, 256),
        # nvidia.com/en-us/data-center/a100 (SXM, 80 GB): 312 TFLOPS, 2039 GB/s, NVLink 600 GB/s in
        # both directions; the DGX A100 has 8, with one 200 Gb/s adapter each.
        Chip("A100", "gpu", 312e12, 80 * GB, 2039 * GB, 300 * GB, 8, 25 * GB),
        # nvidia.com/en-us/data-center/h100 (SXM): 1979 TFLOPS with sparsity, half of it without;
        # 80 GB, 3.35 TB/s, NVLink 900 GB/s in both directions; the DGX H100 has 8, with one
        # 400 Gb/s adapter each.
        Chip("H100", "gpu", 989.5e12, 80 * GB, 3350 * GB, 450 * GB, 8, 50 * GB),
    )
}
"""The chips that plans can be made for, by name."""


def chip(name: str) -> Chip:
    """Returns the chip with that name, ignoring case.

    Raises:
      UsageError: an unknown chip.

    >>> chip("h100").platform
    'gpu'
    """
    by_name = {known.lower(): chip for known, chip in CHIPS.items()}
    if name.lower() not in by_name:
        raise UsageError(
            f"unknown chip {name!r}; known: {', '.join(CHIPS)}{nearest(name.lower(), by_name)}"
        )
    return by_name[name.lower()]
