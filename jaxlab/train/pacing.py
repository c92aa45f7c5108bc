"""Memory of training on CPUs: one step's temporaries at a time, in pages that the process keeps."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh

if TYPE_CHECKING:
    from jaxlab.train.state import TrainState

HUGE_PAGE = 2**21

LONG, FREEING = 0.05, 0.001
"""After a step of more than `LONG` seconds, `FREEING` seconds pass until its memory is free."""


class Pacing:
    """Starts each step when the step before it is done and has freed its memory.

    XLA's CPU client allocates a step's temporaries when the step is dispatched, so a loop that
    runs ahead holds those of several steps. Waiting costs no time: CPUs run steps one by one.
    """

    def __init__(self):
        self._began = 0.0

    def before_step(self, state: TrainState) -> None:
        """Waits until `state` is computed and the step that computed it has freed its memory."""
        jax.block_until_ready(state.step)
        # The thread that ran the step frees its temporaries just after its results are there;
        # without the sleep some runs peak at twice the memory.
        if time.perf_counter() - self._began > LONG:
            time.sleep(FREEING)
        self._began = time.perf_counter()


def pacing_for(mesh: Mesh) -> Pacing | None:
    """How to pace steps on the devices of `mesh`; None on accelerators, where steps run ahead."""
    return Pacing() if mesh.devices.flat[0].platform == "cpu" else None


def reuse_memory() -> bool:
    """Makes glibc keep freed memory, in huge pages; returns whether it does.

    By default glibc returns large freed blocks to the system at once, and every step faults the
    pages of its temporaries in again, 4 KiB at a time: a fifth of the CPU time of a small step
    (`python -m benchmarks.train_loop`, with and without `--malloc=default`). Elsewhere than on
    glibc this does nothing. Call it before the first computation; the command line does.
    """
    libc = _glibc()
    if libc is None:
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h: M_*
    asked = ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1))
    kept = all([libc.mallopt(option, value) for option, value in asked])
    if kept:
        _ask_for_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    return kept


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallopt"):  # musl has none
        return None
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _ask_for_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Advises that the next `size` bytes of the heap lie in huge pages; allocates none of them."""
    start = libc.malloc(size)
    if start is None:  # a limit on address space: go on with small pages
        return
    first = -(-start // HUGE_PAGE) * HUGE_PAGE
    madv_hugepage = 14  # sys/mman.h
    libc.madvise(first, (start + size - first) // HUGE_PAGE * HUGE_PAGE, madv_hugepage)
    libc.free(start)
