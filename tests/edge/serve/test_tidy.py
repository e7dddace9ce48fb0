"""A server that runs for long keeps no memory that nobody uses."""

import asyncio
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from slm_edge.edge.llama.kv_bytes import new_blob
from slm_edge.edge.serve.supervise import tidied

needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
# How many heaps there are once eight threads have all taken memory
HEAPS = """
import asyncio, ctypes, sys, threading
from slm_edge.edge.serve.supervise import tidied

async def run():
    libc, together = ctypes.CDLL(None), threading.Barrier(9)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p] * 2
    libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]

    def work():
        for _ in range(200):
            libc.malloc(5000)
        together.wait()

    async with tidied():
        threads = [threading.Thread(target=work) for _ in range(8)]
        for one in threads:
            one.start()
        together.wait()
        out = libc.fopen(sys.argv[1].encode(), b"w")
        libc.malloc_info(0, out)
        libc.fclose(out)
        for one in threads:
            one.join()

asyncio.run(run())
"""


@needs_glibc
def test_not_each_thread_has_a_heap_of_its_own(tmp_path):
    """Each heap keeps what the largest request took in it: with many that looks like a leak for hours."""
    subprocess.run([sys.executable, "-c", HEAPS, str(tmp_path / "heaps.xml")], check=True, timeout=120)
    assert 1 <= (tmp_path / "heaps.xml").read_text().count("<heap nr=") <= 2


def own_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_kept_prompts_leave_no_holes():
    """What is freed of them is the system's at once, though small things were made between them and stay."""
    blobs, between = [], []
    for _ in range(600):
        blobs.append(new_blob(100_000))
        blobs[-1][:] = 1
        between.append(bytes(700))
    held_bytes = own_bytes()
    del blobs[:]
    assert own_bytes() < held_bytes - (50 << 20) and len(between) == 600
    small = new_blob(100)
    small[:] = 7
    assert small.shape == (100,) and small.sum() == 700


@needs_glibc
def test_freed_memory_goes_back():
    """What threads took and freed is the system's again, though something small is kept of each."""

    async def run():
        kept = []

        def work():
            taken = [bytes(600 + i % 50) for i in range(100_000)]
            kept.append(taken[-1])

        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
        held_bytes = own_bytes()
        async with tidied(0.05):
            for _ in range(100):
                await asyncio.sleep(0.05)
                if own_bytes() < held_bytes - (20 << 20):
                    return True
        return False

    assert asyncio.run(run())
