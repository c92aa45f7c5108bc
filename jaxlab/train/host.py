"""What the host process can do for the speed of a CPU run."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Sequence

HUGE_PAGE = 2**21
BARRIER = 2**16
"""Bytes of a block that keeps two holes of the heap apart."""

NURSERY = 2**29
"""Bytes of the heap that what is smaller than a step's temporaries may fill first."""

_kept = False


def reuse_memory() -> bool:
    """Asks glibc to keep freed memory, in huge pages; returns whether it keeps it.

    XLA's CPU client allocates the temporaries of a step anew at every step. By default glibc gives
    such large pieces back to the system at once, and each of their pages is faulted in again: a
    tenth to a quarter of the time of a small training step. Pages of 2 MiB, where the system
    gives them to who asks, take less looking up of addresses. `NURSERY` bytes of addresses are set
    aside for smaller things, so that the temporaries keep their place. Elsewhere than on glibc it
    does nothing. Call it before the first computation; the command line of the experiments does.
    """
    global _kept
    libc = _glibc()
    if libc is None:
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h: M_*
    asked = ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1))
    _kept = all([libc.mallopt(option, value) for option, value in asked])
    if _kept:
        _ask_for_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
        # Without a hole the results of a step, or a copy of the state, come to lie behind the
        # temporaries, which are the largest; these find their place too small by a few bytes at
        # the next step, and a new one must be faulted in, page by page.
        _leave_holes(libc, [NURSERY])
    return _kept


def keep_place(size: int, count: int = 1) -> None:
    """Makes ready for steps whose temporaries are `size` bytes; call it when one is compiled.

    What the compilation has left is given back, see `return_memory`. Then a hole in the heap is
    left for the temporaries, and two of half its size beside it. Whatever fits several holes is put
    in the smallest: so what a run makes beside its steps, such as the copy of a state that is
    saved, comes to lie in those, and the temporaries find their own at every step. Holes take no
    memory until somebody writes there, but for a page between two. It does nothing where
    `reuse_memory` was not called.

    Args:
      size: of the temporaries of one device.
      count: the number of devices in this process.
    """
    libc = _glibc()
    if not _kept or libc is None:
        return
    return_memory()
    place = size + size // 16 + HUGE_PAGE
    _leave_holes(libc, [place] * count + [place // 2] * 2)


def return_memory() -> None:
    """Gives the system back what glibc keeps of freed memory: hundreds of MB after a compilation.

    Elsewhere than on glibc it does nothing.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(sys.maxsize)  # holes alone: what is cut off comes back in small pages


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if not hasattr(libc, "mallopt"):  # musl has none
        return None
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = libc.malloc_trim.argtypes = [ctypes.c_size_t]
    libc.realloc.restype = ctypes.c_void_p
    libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _leave_holes(libc: ctypes.CDLL, sizes: Sequence[int]) -> None:
    """Leaves free blocks of the heap, each between two small ones that stay."""
    # The last is as large as the one before, or it might come to lie elsewhere.
    blocks = [libc.malloc(size) for size in [*sizes, sizes[-1]]]
    for block in blocks:
        # Of each its beginning stays, which lies behind the end of the block before it. None are
        # those for which a limit leaves no addresses.
        if block is not None:
            libc.realloc(block, BARRIER)


def _ask_for_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Advises the coming `size` bytes of the heap to lie in huge pages; takes no memory itself."""
    start = libc.malloc(size)
    if start is None:  # a limit on address space: go on with small pages
        return
    first = -(-start // HUGE_PAGE) * HUGE_PAGE
    madv_hugepage = 14  # sys/mman.h
    libc.madvise(first, (start + size - first) // HUGE_PAGE * HUGE_PAGE, madv_hugepage)
    libc.free(start)
