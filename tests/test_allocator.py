"""pnsamp_jax.allocator: what is freed is used again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from pnsamp_jax.allocator import give_back_freed_memory, keep_freed_memory
if sys.argv[1] != "leave":
    assert keep_freed_memory()
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for turn in range(6):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
    if sys.argv[1] == "give back":
        assert give_back_freed_memory()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_the_same_pages_serve_again():
    # Four times 64 MiB: pages of 4 KiB anew each time, even if huge pages of 2 MiB take their place, against none.
    assert page_faults("leave") >= 4 * 32
    assert page_faults("keep") < 32
    assert page_faults("give back") >= 4 * 32
