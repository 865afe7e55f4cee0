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
    mallopt = _glibc("mallopt")
    return mallopt is not None and all([mallopt(*option) == 1 for option in GLIBC_OPTIONS.values()])


def give_back_freed_memory() -> bool:
    """Gives back what is free now; for after what is done but once, as to load data. Whether there was anything."""
    trim = _glibc("malloc_trim")
    return trim is not None and trim(0) == 1


def _glibc(name: str):
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
