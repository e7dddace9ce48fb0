"""A good adapter, to be changed or exported."""

import pytest
from build_peft import K0, Q0, pair, written_adapter


@pytest.fixture
def good(tmp_path):
    return written_adapter(tmp_path / "good", pair(Q0, 64, 64) | pair(K0, 64, 32))
