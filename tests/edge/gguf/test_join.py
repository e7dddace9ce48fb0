"""Parts of a split model, written by gguf-py: joined, the file is as the whole one that gguf-py writes."""

import gguf
import numpy as np
import pytest
from build_gguf import tiny_base
from build_split import split
from slm_edge.edge.errors import DamagedError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.join import join


@pytest.fixture
def parts(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    (tmp_path / "parts").mkdir()
    return base, split(base, tmp_path / "parts", 5)


def test_joined_parts_are_the_model(parts, tmp_path):
    base, files = parts
    assert len(files) > 2
    join(files, tmp_path / "whole.gguf")
    was, found = gguf.GGUFReader(base), gguf.GGUFReader(tmp_path / "whole.gguf")
    names = [name for name in was.fields if not name.startswith("GGUF.")]
    assert [name for name in found.fields if not name.startswith("GGUF.")] == names
    for name in names:
        assert found.fields[name].types == was.fields[name].types
        assert found.fields[name].contents() == was.fields[name].contents()
    by_name = {tensor.name: tensor for tensor in found.tensors}
    assert by_name.keys() == {tensor.name for tensor in was.tensors}
    for tensor in was.tensors:
        assert by_name[tensor.name].tensor_type == tensor.tensor_type
        assert np.array_equal(by_name[tensor.name].data, tensor.data)
    assert BaseInfo.open(tmp_path / "whole.gguf").fingerprint == BaseInfo.open(base).fingerprint


@pytest.mark.parametrize("how", ["missing", "twice", "order"])
def test_parts_that_are_none_of_one_model(parts, tmp_path, how):
    _, files = parts
    wrong = {"missing": files[:-1], "twice": [files[0], *files[:-1]], "order": files[::-1]}[how]
    with pytest.raises(DamagedError, match="is not part"):
        join(wrong, tmp_path / "whole.gguf")
