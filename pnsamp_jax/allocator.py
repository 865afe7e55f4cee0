"""Lets the C library keep the memory that it frees.

Every step of a program on CPU asks for the same large arrays again. glibc gives them back to the system when they are
freed, and the system clears every page anew: about a quarter of the time of a training step (see
experiments/RESULTS.md).
"""

import ctypes
import sys

# <malloc.h>: no block is mapped on its own, none is given back, the heap grows in large steps, threads share one heap.
GLIBC_OPTIONS = {
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, -1),  # never: a batch of eight at full size is larger than any int can say
    "M_TOP_PAD": (-2, 2**28),
    "M_ARENA_MAX": (-8, 1),
}


def keep_freed_memory() -> bool:
    """Sets the options for this process; whether that was possible, which it is with glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all([mallopt(*option) == 1 for option in GLIBC_OPTIONS.values()])
