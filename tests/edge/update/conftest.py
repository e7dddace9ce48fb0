"""Who makes packs and keeps a channel, for the tests of updates."""

import pytest
from build_channel import Maker


@pytest.fixture
def maker(tmp_path):
    folder = tmp_path / "maker"
    folder.mkdir()
    return Maker(folder)
