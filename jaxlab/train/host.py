"""What the host process can do for the speed of a CPU run."""

from __future__ import annotations

import ctypes
import sys


def reuse_memory() -> bool:
    """Asks glibc to keep freed memory; returns whether it could.

    XLA's CPU client allocates the temporaries of a step anew at every step. By default glibc gives
    such large pieces back to the system at once, and each of their pages is faulted in again: a
    tenth to a quarter of the time of a small training step. Elsewhere than on glibc it does
    nothing. Call it before the first computation; the command line of the experiments does.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h: M_*
    never = 2**31 - 1
    asked = ((mmap_threshold, never), (trim_threshold, never), (arena_max, 1))
    return all([mallopt(option, value) for option, value in asked])
