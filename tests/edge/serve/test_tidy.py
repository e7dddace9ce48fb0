"""A server that runs for long keeps no memory that nobody uses."""

import asyncio
import ctypes
import os
from pathlib import Path

import pytest
from slm_edge.edge.serve.supervise import tidied


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_goes_back():
    """What threads took and freed is the system's again, though something small is kept of each."""

    def own_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

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
