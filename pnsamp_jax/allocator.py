"""Settings of the C library's memory allocator.

On CPU, every training step allocates the same large arrays again. By default glibc returns freed arrays to the
operating system, which has to clear each page before it hands the memory out again. That takes about a quarter of a
training step (see experiments/RESULTS.md).
"""

import ctypes
import sys
from typing import Any

# See <malloc.h>: never map a block on its own, never return memory, grow the heap in large steps, share one heap
# between all threads.
GLIBC_OPTIONS = {
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, -1),  # -1 disables trimming; no int is as large as a full-size batch of eight
    "M_TOP_PAD": (-2, 2**28),
    "M_ARENA_MAX": (-8, 1),
}


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees. Return False where the C library is not glibc."""
    mallopt = _glibc("mallopt")
    return mallopt is not None and all([mallopt(*option) == 1 for option in GLIBC_OPTIONS.values()])


def give_back_freed_memory() -> bool:
    """Return freed memory to the operating system. Return True if any was released.

    Call it after one-off work such as loading data.
    """
    trim = _glibc("malloc_trim")
    return trim is not None and trim(0) == 1


def _glibc(name: str) -> Any:
    """Return a function of the C library; None if there is none of this name, or the system is not Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
