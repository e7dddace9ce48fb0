"""Files that `devices fit` and `pack add` meet as others made them."""

import re

import gguf
import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.devices.catalogue.catalogue import find_device
from slm_edge.devices.predict.fit import Target, Wish, judge
from slm_edge.devices.predict.fit_text import table_text, verdict_dict, verdict_text
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.adapter import check_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile


def test_parts_of_a_split_model_are_named(tmp_path):
    keys = {"split.count": (3, gguf.GGUFValueType.UINT16)}
    with pytest.raises(UnsupportedError, match="one part of a split model") as caught:
        Target.of_file(GgufFile.open(tiny_base(tmp_path / "a.gguf", keys=keys)))
    assert "llama-gguf-split --merge" in str(caught.value)


def test_a_mixture_is_called_by_its_own_name(tmp_path):
    """Gemma 3 270M's Q4_K_M has most of its weights in Q8_0."""
    keys = {"general.file_type": (15, gguf.GGUFValueType.UINT32)}
    assert Target.of_file(GgufFile.open(tiny_base(tmp_path / "a.gguf", keys=keys))).quant == "q4_k_m"
    assert Target.of_file(GgufFile.open(tiny_base(tmp_path / "b.gguf"))).quant == "f32"


def test_a_model_that_fits_and_that_the_runtime_does_not_take_is_said(tmp_path):
    device, wish = find_device("raspberry-pi-5-4gb"), Wish(context_tokens=64, prompt_tokens=16)
    plain = judge(device, Target.of_file(GgufFile.open(tiny_base(tmp_path / "a.gguf"))), wish)
    assert plain.fits and verdict_dict(plain)["runs"] and "cannot run" not in verdict_text(plain) + table_text([plain])
    other = tiny_base(tmp_path / "b.gguf", keys={"tokenizer.ggml.model": ("bert", gguf.GGUFValueType.STRING)})
    verdict = judge(device, Target.of_file(GgufFile.open(other)), wish)
    told = verdict_dict(verdict)
    assert told["fits"] and not told["runs"] and "bert" in told["obstacles"][0]
    assert "fits, but this runtime cannot run it" in verdict_text(verdict)
    assert re.search(r"cannot run: .*bert", verdict_text(verdict)) and "cannot run: " in table_text([verdict])


def test_an_adapter_of_another_model_is_refused_in_few_lines(tmp_path):
    large = tiny_base(tmp_path / "large.gguf", n_layers=24)
    small = tiny_base(tmp_path / "small.gguf", architecture="qwen2", n_embd=128, n_ff=256)
    adapter = tiny_adapter(tmp_path / "a.gguf", large)
    with pytest.raises(InputError) as caught:
        check_adapter(adapter, BaseInfo.open(small))
    first, second, rest = caught.value.problems
    assert "made for another base" in first and "made for the architecture" in second
    assert re.fullmatch(r"\d+ more faults that follow from it", rest)
    # Without a fingerprint it is not known that one thing is behind all faults.
    unnamed = tiny_adapter(tmp_path / "b.gguf", large, fingerprint=None)
    with pytest.raises(InputError) as caught:
        check_adapter(unnamed, BaseInfo.open(small))
    assert 3 < len(caught.value.problems) < 30
    assert "more like this" in str(caught.value)
