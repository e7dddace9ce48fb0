"""A pack, and the files that it is built of."""

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_packs import HUB, new
from slm_edge.edge.pack.write import build_pack


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, two adapters for it, and one for another base."""
    folder = tmp_path_factory.mktemp("made")
    base = tiny_base(folder / "tiny.gguf")
    tiny_adapter(folder / "math.gguf", base, seed=1, task="sums")
    tiny_adapter(folder / "code.gguf", base, seed=2, rank=4)
    tiny_adapter(folder / "foreign.gguf", tiny_base(folder / "other.gguf", seed=5))
    return folder


@pytest.fixture
def pack(made, tmp_path):
    licences = tmp_path / "in" / "licenses"
    licences.mkdir(parents=True)
    (licences / "data.txt").write_text("MIT")
    return build_pack(
        tmp_path / "pack",
        base=made / "tiny.gguf",
        adapters=new(made, "math", "code"),
        default_adapter="math",
        sources=[HUB],
        include=[licences],
    )
