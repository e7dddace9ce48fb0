"""Memory moved to huge pages keeps its bytes, and what was never used stays unused."""

import mmap
import os
import re
import sys
from pathlib import Path

import pytest
from slm_edge.edge.system.huge_pages import huge_page_bytes, to_huge_pages

SIZE = 16 << 20


def in_huge_pages():
    return int(re.search(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1]) * 1024


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_used_memory_is_moved_and_unused_is_not():
    kernel = tuple(map(int, re.match(r"(\d+)\.(\d+)", os.uname().release).groups()))
    if huge_page_bytes() is None or kernel < (6, 1):
        pytest.skip("this kernel moves no pages on request")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, SIZE, flags=flags) as used, mmap.mmap(-1, SIZE, flags=flags) as unused:
        used.madvise(mmap.MADV_NOHUGEPAGE)
        text = os.urandom(SIZE)
        used[:] = text
        used.madvise(mmap.MADV_HUGEPAGE)
        before, resident_before = in_huge_pages(), resident()
        assert to_huge_pages(lambda: True) == 0
        moved = to_huge_pages()
        # The mapping need not begin where a huge page does.
        assert in_huge_pages() - before >= SIZE // 2
        assert moved >= SIZE // 2
        assert resident() - resident_before < SIZE // 2
        assert used[:] == text
        assert unused[:8] == bytes(8)


def test_where_there_are_none_nothing_happens(tmp_path):
    assert huge_page_bytes(tmp_path) is None
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert huge_page_bytes(tmp_path) is None
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert huge_page_bytes(tmp_path) == 2 << 20
