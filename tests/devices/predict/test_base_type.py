"""`export base --type auto`: the fastest type that fits a device and loses little, from what the forecast says."""

import json

import pytest
from build_gguf import tiny_base
from build_hf import tiny_checkpoint
from click.testing import CliRunner
from slm_edge.devices.catalogue.catalogue import find_device, find_sizes, with_ram
from slm_edge.devices.catalogue.shapes import find_shape
from slm_edge.devices.predict.base_type import LOSS, MOST_LOSS, SAME_SPEED, choose_type
from slm_edge.devices.predict.fit import Wish
from slm_edge.edge.errors import DoesNotFitError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.base.base import export_base
from slm_edge.export.base.source_shape import shape_of_source
from slm_edge.export.cli.base import base

GIB = 1 << 30


@pytest.mark.parametrize("device", ["raspberry-pi-5-4gb", "raspberry-pi-3b-plus", "intel-n100"])
@pytest.mark.parametrize("model", ["smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b"])
def test_nothing_that_fits_and_loses_little_is_clearly_faster(device, model):
    try:
        choice = choose_type(find_shape(model), find_sizes(device), Wish())
    except DoesNotFitError:
        assert (device, model) == ("raspberry-pi-3b-plus", "llama-3.2-1b")
        return
    chosen = choice.chosen
    assert chosen.verdict.fits
    assert {one.label for one in choice.candidates} == set(LOSS)
    for other in choice.candidates:
        if other.verdict.fits and other.loss <= MOST_LOSS:
            assert chosen.loss <= MOST_LOSS
            assert chosen.request_s <= SAME_SPEED * other.request_s
            # What is as fast loses no less.
            assert other.loss >= chosen.loss or other.request_s > SAME_SPEED * min(
                one.request_s for one in choice.candidates if one.verdict.fits and one.loss <= MOST_LOSS
            )


def test_less_memory_takes_a_smaller_type_and_too_little_none():
    device, shape = find_device("raspberry-pi-5-8gb"), find_shape("llama-3.2-3b")
    chosen = [choose_type(shape, [with_ram(device, gib)], Wish()) for gib in (8, 2.4)]
    assert chosen[0].chosen.label in ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
    sizes = [choice.chosen.verdict.plan.total_bytes for choice in chosen]
    assert sizes[1] < sizes[0]
    assert not all(one.verdict.fits for one in chosen[1].candidates)
    with pytest.raises(DoesNotFitError, match=r"no type .* fits .* needs"):
        choose_type(shape, [with_ram(device, 0.5)], Wish())


def test_the_command_chooses_and_writes_that_type(tmp_path):
    tiny_checkpoint(tmp_path / "hf")
    out = tmp_path / "base.gguf"
    arguments = [tmp_path / "hf", "-o", out, "--type", "auto", "--device", "raspberry-pi-5-4gb", "--json"]
    done = CliRunner().invoke(base, [str(one) for one in arguments], catch_exceptions=False)
    told = json.loads(done.stdout)
    choice = told["choice"]
    assert told["type"] == choice["type"] in LOSS
    assert choice["device"].startswith("raspberry-pi-5")
    assert all(
        row["prompt_tokens_per_s"] > 0 < row["decode_tokens_per_s"] and row["file_bytes"] > 0
        for row in choice["candidates"]
    )
    row = next(row for row in choice["candidates"] if row["type"] == choice["type"])
    # The forecast's bytes are those of the tensors that were written.
    assert row["file_bytes"] == sum(info.size_bytes for info in GgufFile.open(out).tensors.values())
    assert choice["why"] in done.stderr


def test_a_checkpoint_and_its_gguf_have_one_shape(tmp_path):
    tiny_checkpoint(tmp_path / "m")
    export_base(tmp_path / "m", tmp_path / "m.gguf", "f16")
    of_folder = shape_of_source(tmp_path / "m", output_weight=False)
    assert of_folder == shape_of_source(tmp_path / "m.gguf", output_weight=False)
    apart = shape_of_source(tmp_path / "m.gguf", output_weight=True)
    assert not apart.tied


def test_what_the_choice_cannot_weigh_is_said(tmp_path):
    with pytest.raises(UnsupportedError, match="this is gemma3"):
        shape_of_source(tiny_base(tmp_path / "gemma.gguf", architecture="gemma3"), output_weight=False)
    done = CliRunner().invoke(base, [str(tmp_path), "-o", str(tmp_path / "x.gguf"), "--device", "intel-n100"])
    assert done.exit_code == 2 and "--device goes with --type auto" in done.stderr
    (tmp_path / "i.dat").write_bytes(b"")
    options = ["--type", "auto", "--imatrix", str(tmp_path / "i.dat")]
    done = CliRunner().invoke(base, [str(tmp_path), "-o", str(tmp_path / "x.gguf"), *options])
    assert done.exit_code == 2 and "imatrix" in done.stderr
