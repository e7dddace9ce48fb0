"""The short form of `benchmarks/delivery/broken_pulls.py`: one cut of each kind, and two pulls at once."""

from slm_edge.benchmarks.delivery.broken_pulls import KINDS, MOST_TWICE_BYTES, measure


def test_cut_pulls_leave_no_half_file_and_fetch_little_twice(tmp_path):
    found = measure(n_cuts=4, size_bytes=6 << 20, seed=4, folder=tmp_path)
    assert found.faults == []
    assert found.cuts == dict.fromkeys(KINDS, 1)
    assert max(found.twice_bytes) <= MOST_TWICE_BYTES
