"""What the host process can do for the speed of a CPU run."""

from __future__ import annotations

import ctypes
import os
import sys

HUGE_PAGE = 2**21
NURSERY = 2**29
"""Bytes of the heap that what is smaller than a step's temporaries may fill first."""


def reuse_memory() -> bool:
    """Asks glibc to keep freed memory, in huge pages; returns whether it keeps it.

    XLA's CPU client allocates the temporaries of a step anew at every step. By default glibc gives
    such large pieces back to the system at once, and each of their pages is faulted in again: a
    tenth to a quarter of the time of a small training step. Pages of 2 MiB, where the system
    gives them to who asks, take less looking up of addresses. `NURSERY` bytes of addresses are set
    aside for smaller things, so that the temporaries keep their place. Elsewhere than on glibc it
    does nothing. Call it before the first computation; the command line of the experiments does.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h: M_*
    asked = ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1))
    kept = all([mallopt(option, value) for option, value in asked])
    if kept:
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        _ask_for_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
        _make_nursery(libc)
    return kept


def return_memory() -> None:
    """Gives the system back what glibc keeps of freed memory: hundreds of MB after a compilation.

    Elsewhere than on glibc it does nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
        trim(sys.maxsize)  # holes alone: what is cut off from the end comes back in small pages


def _make_nursery(libc: ctypes.CDLL) -> None:
    """Leaves a hole in the heap, which takes no memory itself, and a small block behind it.

    Whatever fits a hole is put there. Without one, the results of a step, or a copy of the state,
    come to lie behind the temporaries, which are the largest; these find their place too small by
    a few bytes at the next step, and a new one must be faulted in, page by page.
    """
    hole = libc.malloc(NURSERY)
    if hole is None or libc.malloc(HUGE_PAGE) is None:  # a limit on address space
        return
    libc.free(hole)


def _ask_for_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Advises the coming `size` bytes of the heap to lie in huge pages; takes no memory itself."""
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(size)
    if start is None:  # a limit on address space: go on with small pages
        return
    first = -(-start // HUGE_PAGE) * HUGE_PAGE
    madv_hugepage = 14  # sys/mman.h
    libc.madvise(first, (start + size - first) // HUGE_PAGE * HUGE_PAGE, madv_hugepage)
    libc.free(start)
