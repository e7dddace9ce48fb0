"""Few-bit types through llama.cpp's quantiser, importance matrices, GGUF sources, and interruptions."""

import json
import signal
import struct
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
from build_gguf import tiny_base
from build_hf import CHATML, tiny_checkpoint
from compare_logits import gguf_logits, largest_difference, random_ids
from slm_edge.edge.errors import DamagedError, EngineError, InputError, UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.imatrix import read_imatrix
from slm_edge.export.base.quantize import TYPES, quantize

# one block of 256 per row, so that every type applies
WIDE = {"n_layers": 1, "n_embd": 256, "n_heads": 4, "n_kv_heads": 2, "n_ff": 256}
WITHOUT_IMATRIX = [name for name, entry in TYPES.items() if not entry.needs_imatrix]
WITH_IMATRIX = ["q4_k_m", "iq4_nl", "iq3_xs", "q2_k_s", "iq2_xxs"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint of width 256, its F32 GGUF, and an importance matrix for it."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_checkpoint(folder / "hf", **WIDE)
    export_base(folder / "hf", folder / "f32.gguf", TYPES["f32"])
    write_imatrix(folder / "wide.gguf", GgufFile.open(folder / "f32.gguf"))
    return folder


def write_imatrix(path, model, **changes):
    """A GGUF importance matrix of random numbers, written by the gguf package."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["/home/me/some-text.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, info in model.tensors.items():
        if name.startswith("blk.") and len(info.shape) == 2:
            sums = changes.get(name, random.uniform(1, 9, info.shape[0])).astype(np.float32)
            writer.add_tensor(f"{name}.in_sum2", sums.reshape(1, -1))
            writer.add_tensor(f"{name}.counts", np.full((1, 1), 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def names(folder):
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def numbers(file, name):
    """A tensor of any type as float32, by the gguf package."""
    info = file.tensors[name]
    kind = gguf.GGMLQuantizationType(info.type.value)
    flat = gguf.quants.dequantize(file.raw(name).reshape(int(np.prod(info.shape[1:])), -1), kind)
    return flat.reshape(info.shape[::-1])


@pytest.mark.parametrize("type_name", WITHOUT_IMATRIX)
def test_every_type_runs(wide, tmp_path, type_name):
    path = tmp_path / "base.gguf"
    result = export_base(wide / "hf", path, TYPES[type_name])
    assert names(tmp_path) == ["base.gguf"]
    file, source = GgufFile.open(path), GgufFile.open(wide / "f32.gguf")
    assert file.get("general.file_type") == TYPES[type_name].ftype
    assert sum(result.types.values()) == len(file.tensors)
    for name in source.tensors:
        exact = source.array(name)
        error = np.sqrt(np.mean((numbers(file, name) - exact) ** 2) / np.mean(exact**2))
        assert error < (0.12 if TYPES[type_name].bits > 4.4 else 0.35), name
    assert np.isfinite(gguf_logits(path, random_ids(384, 4))).all()


@pytest.mark.parametrize("type_name", WITH_IMATRIX)
def test_every_type_runs_with_imatrix(wide, tmp_path, type_name):
    path = tmp_path / "base.gguf"
    export_base(wide / "f32.gguf", path, TYPES[type_name], Options(imatrix=wide / "wide.gguf"))
    file = GgufFile.open(path)
    assert file.get("quantize.imatrix.file") == "wide.gguf"
    assert file.get("quantize.imatrix.dataset") == "some-text.txt"
    assert file.get("quantize.imatrix.chunks_count") == 7


def test_imatrix_changes_the_numbers(wide, tmp_path):
    export_base(wide / "f32.gguf", tmp_path / "plain.gguf", TYPES["q4_k_m"])
    export_base(wide / "f32.gguf", tmp_path / "weighted.gguf", TYPES["q4_k_m"], Options(imatrix=wide / "wide.gguf"))
    plain, weighted = GgufFile.open(tmp_path / "plain.gguf"), GgufFile.open(tmp_path / "weighted.gguf")
    name = "blk.0.ffn_up.weight"
    assert not np.array_equal(plain.raw(name), weighted.raw(name))


@pytest.mark.parametrize("type_name", [name for name, entry in TYPES.items() if entry.needs_imatrix])
def test_types_that_need_an_imatrix_say_so(wide, tmp_path, type_name):
    with pytest.raises(InputError, match="needs an importance matrix"):
        export_base(wide / "hf", tmp_path / "base.gguf", TYPES[type_name])
    # llama.cpp itself agrees with our table
    with pytest.raises(InputError, match="needs an importance matrix"):
        quantize(wide / "f32.gguf", tmp_path / "base.gguf", TYPES[type_name])


def test_imatrix_of_another_model_is_refused(wide, tmp_path):
    tiny_checkpoint(tmp_path / "hf", n_layers=3)
    export_base(tmp_path / "hf", tmp_path / "other.gguf", TYPES["f32"])
    write_imatrix(tmp_path / "other.imatrix", GgufFile.open(tmp_path / "other.gguf"))
    with pytest.raises(InputError, match="another model") as caught:
        export_base(wide / "hf", tmp_path / "base.gguf", TYPES["q4_k_m"], Options(imatrix=tmp_path / "other.imatrix"))
    assert len(caught.value.problems) == 21
    assert not (tmp_path / "base.gguf").exists()
    with pytest.raises(InputError, match="no use with q8_0"):
        export_base(wide / "hf", tmp_path / "base.gguf", TYPES["q8_0"], Options(imatrix=wide / "wide.gguf"))


def test_imatrix_with_nan_is_refused(wide, tmp_path):
    bad = np.ones(256)
    bad[5] = np.nan
    write_imatrix(tmp_path / "bad.gguf", GgufFile.open(wide / "f32.gguf"), **{"blk.0.attn_q.weight": bad})
    with pytest.raises(DamagedError) as caught:
        read_imatrix(tmp_path / "bad.gguf")
    assert caught.value.problems == ("blk.0.attn_q.weight holds NaN, infinity or a negative number",)


def test_both_imatrix_formats_say_the_same(wide, tmp_path):
    new = read_imatrix(wide / "wide.gguf")
    with (tmp_path / "old.dat").open("wb") as stream:
        stream.write(struct.pack("<i", len(new.entries)))
        for name, values in new.entries.items():
            stream.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, len(values)))
            stream.write((values * 3).astype("<f4").tobytes())
        stream.write(struct.pack("<ii", 7, len(new.dataset)) + new.dataset.encode())
    old = read_imatrix(tmp_path / "old.dat")
    assert (old.dataset, old.n_chunks) == (new.dataset, new.n_chunks)
    for name, values in new.entries.items():
        np.testing.assert_allclose(old.entries[name], values, rtol=1e-6)
    whole = (tmp_path / "old.dat").read_bytes()
    for size in (2, 30, len(whole) // 2):
        (tmp_path / "cut.dat").write_bytes(whole[:size])
        with pytest.raises(DamagedError):
            read_imatrix(tmp_path / "cut.dat")


@pytest.mark.reference
def test_a_real_imatrix(shared_data):
    imatrix = read_imatrix(shared_data / "imatrix" / "Llama-3.2-3B-Instruct.imatrix")
    assert imatrix.n_chunks == 125
    assert imatrix.dataset.endswith("calibration_datav3.txt")
    assert len(imatrix.entries) == 196
    assert imatrix.entries["blk.27.ffn_down.weight"].shape == (8192,)


def test_gguf_source_below_8_bits_must_be_allowed(wide, tmp_path):
    export_base(wide / "hf", tmp_path / "q4.gguf", TYPES["q4_k_m"])
    with pytest.raises(UnsupportedError, match="quantised already") as caught:
        export_base(tmp_path / "q4.gguf", tmp_path / "q2.gguf", TYPES["q2_k"])
    assert "--allow-requantize" in caught.value.hint
    result = export_base(tmp_path / "q4.gguf", tmp_path / "q2.gguf", TYPES["q2_k"], Options(allow_requantize=True))
    assert "worse" in result.notes[0]
    # floats are exact enough from anything
    export_base(tmp_path / "q4.gguf", tmp_path / "f32.gguf", TYPES["f32"])
    q4, f32 = GgufFile.open(tmp_path / "q4.gguf"), GgufFile.open(tmp_path / "f32.gguf")
    for name in q4.tensors:
        assert np.array_equal(numbers(q4, name), f32.array(name)), name


def test_q8_0_source_is_taken_with_a_note(wide, tmp_path):
    export_base(wide / "hf", tmp_path / "q8.gguf", TYPES["q8_0"])
    result = export_base(tmp_path / "q8.gguf", tmp_path / "q4.gguf", TYPES["q4_0"])
    assert result.notes == ["quantised from Q8_0, not from the float checkpoint"]


def test_keep_changes_keys_and_head_only(wide, tmp_path):
    export_base(wide / "hf", tmp_path / "q4.gguf", TYPES["q4_k_m"])
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    options = Options(output_weight=True, chat_template=template, name="mine")
    export_base(tmp_path / "q4.gguf", tmp_path / "kept.gguf", None, options)
    before, after = GgufFile.open(tmp_path / "q4.gguf"), GgufFile.open(tmp_path / "kept.gguf")
    assert after.get("tokenizer.chat_template") == template.read_text()
    assert after.get("general.name") == "mine"
    assert np.array_equal(after.raw("output.weight"), before.raw("token_embd.weight"))
    for name, info in before.tensors.items():
        assert after.tensors[name].type is info.type
        assert np.array_equal(after.raw(name), before.raw(name))
    for key, entry in before.metadata.items():
        if key not in ("tokenizer.chat_template", "general.name"):
            assert after.metadata[key].type is entry.type
            assert after.get(key) == entry.value, key
    ids = random_ids(384, 8)
    assert np.array_equal(gguf_logits(tmp_path / "q4.gguf", ids), gguf_logits(tmp_path / "kept.gguf", ids))


def test_head_written_out_of_a_gguf_and_quantised(wide, tmp_path):
    export_base(wide / "f32.gguf", tmp_path / "f32.gguf", TYPES["f32"], Options(output_weight=True))
    assert largest_difference(wide / "hf", tmp_path / "f32.gguf", 384) <= 2e-3
    assert names(tmp_path) == ["f32.gguf"]


def test_what_is_no_model_is_refused(wide, tmp_path):
    with pytest.raises(InputError, match="'imatrix', not a model"):
        export_base(wide / "wide.gguf", tmp_path / "base.gguf", TYPES["q4_0"])
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(InputError, match="not a GGUF file"):
        export_base(tmp_path / "text.gguf", tmp_path / "base.gguf", TYPES["q4_0"])
    with pytest.raises(InputError, match="name a type"):
        export_base(wide / "hf", tmp_path / "base.gguf", None)
    with pytest.raises(InputError, match="the source itself"):
        export_base(wide / "f32.gguf", wide / "f32.gguf", TYPES["q4_0"], Options(force=True))


def test_failure_of_the_quantiser_is_told(wide, tmp_path):
    (tmp_path / "broken.gguf").write_bytes((wide / "f32.gguf").read_bytes()[:5000])
    with pytest.raises(EngineError, match="cannot quantise to q4_0") as caught:
        quantize(tmp_path / "broken.gguf", tmp_path / "out.gguf", TYPES["q4_0"])
    assert caught.value.problems


def size_bytes(path):
    """0 for a file that was renamed between being listed and being looked at."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def stopped_while_writing(folder, out, which, type_name):
    """(exit code, standard error) of an export that got `which` while writing; None where it was done before that."""
    command = ["nice", "-n", "19", sys.executable, "-m", "slm_edge.edge"]
    command += ["export", "base", str(folder), "-o", str(out / "base.gguf"), "--type", type_name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            if any(size_bytes(path) > 100_000 for path in out.rglob("base.gguf") if path.parent != out):
                process.send_signal(which)
                break
            time.sleep(0.002)
        process.wait(30)
        said = process.stderr.read().decode()
    assert "Traceback" not in said
    if process.returncode == 0:
        assert names(out) == ["base.gguf"]
        return None
    return process.returncode, said


@pytest.mark.parametrize(("which", "type_name"), [(signal.SIGINT, "q4_k_m"), (signal.SIGTERM, "q8_0")])
def test_interrupted_leaves_nothing(tmp_path, which, type_name):
    """Stopped while the result's own bytes appear: our writer's in one case, the quantiser's in the other."""
    # large enough (110 MB as F32) that the signal comes in the middle
    folder = tiny_checkpoint(tmp_path / "hf", n_layers=2, n_embd=1024, n_heads=8, n_ff=3584)
    for attempt in range(5):  # on a busy machine an export may be done before we look
        out = tmp_path / f"out{attempt}"
        out.mkdir()
        seen = stopped_while_writing(folder, out, which, type_name)
        if seen is not None:
            break
    assert seen is not None, "every one of 5 exports was done before it could be stopped"
    assert seen[0] == 130, seen[1]
    assert names(out) == []


def test_command_line(wide, tmp_path):
    command = [
        sys.executable,
        "-m",
        "slm_edge.edge",
        "export",
        "base",
        str(wide / "hf"),
        "-o",
        str(tmp_path / "b.gguf"),
    ]
    done = subprocess.run([*command, "--type", "q4_k_m", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["type"] == "q4_k_m"
    assert result["pre_tokenizer"] == "qwen2"
    assert result["chat_template"] is True
    assert GgufFile.open(tmp_path / "b.gguf").get("tokenizer.chat_template") == CHATML
    done = subprocess.run([*command, "--type", "q4_k"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_no_pack_takes_is_told(tmp_path, slm_edge):
    base = tiny_base(tmp_path / "tiny.gguf")
    for name, told in (("zz", True), ("zz.gguf", False)):
        code, _, err = slm_edge("export", "base", base, "-o", tmp_path / name, "--type", "keep")
        assert code == 0 and ("ends in .gguf" in err) is told
